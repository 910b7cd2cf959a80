"""Sampling: penalties, truncation and noise against plain formulas and observed frequencies."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.fake import limits
from tests.runner.plain_sampler import plain_sample, plain_truncate
from tests.runner.test_noise import chi_square
from tilewise.engine.grammar import bits_of
from tilewise.platforms import draw as draw_module
from tilewise.platforms.draw import Draw, survivors
from tilewise.platforms.ops import Ops
from tilewise.runner.batch import Tables
from tilewise.runner.sampler import apply_mask, sample, warn_of_nan
from tilewise.sampling_params import SamplingParams
from tilewise.step import Admission, Work
from tilewise.types import SampledToken

OPS = Ops()

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """One request in the middle of its answer, and the logits of its next token."""

    logits: torch.Tensor
    sampling: SamplingParams
    tokens: tuple[int, ...] = (0, 1)
    num_prompt: int = 2
    seed: int = 5
    stop: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()


def sample_all(cases: list[Case]) -> list[SampledToken]:
    tables = Tables(limits(max_num_seqs=len(cases)), CPU)
    work = []
    for slot, case in enumerate(cases, 1):
        stop = frozenset(case.stop)
        tables.admit(Admission(slot, case.tokens, case.num_prompt, case.sampling, case.seed, stop, case.bad_words))
        work.append(Work(slot, len(case.tokens) - 1, 1, samples=True))
    found = sample(torch.stack([case.logits for case in cases]), work, tables, OPS).wait()
    return [found[slot][0] for slot in range(1, len(cases) + 1)]


def choose(
    logits: list[float], sampling: SamplingParams, tokens=(0, 1), num_prompt=2, seed=5, stop=(), bad_words=(), mask=None
) -> SampledToken:
    tables = Tables(limits(), CPU)
    tables.admit(Admission(1, tuple(tokens), num_prompt, sampling, seed, frozenset(stop), bad_words))
    work = Work(1, len(tokens) - 1, 1, samples=True, masks=None if mask is None else mask[None])
    (token,) = sample(torch.tensor([logits]), [work], tables, OPS).wait()[1]
    assert int(tables.tokens[1, len(tokens)]) == token.token_id, "the next step reads the token from the tables"
    return token


def test_greedy_takes_the_likeliest():
    assert choose([0.0, 3.0, 2.0], SamplingParams(temperature=0)).token_id == 1


def test_the_same_seed_and_position_give_the_same_token_whatever_the_neighbours():
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    params = SamplingParams(temperature=1.5)
    alone = choose(logits[0].tolist(), params, seed=11).token_id
    tables = Tables(limits(), CPU)
    for slot, seed in ((1, 11), (2, 12), (3, 11)):
        tables.admit(Admission(slot, (0, 1), 2, params, seed, frozenset()))
    work = [Work(slot, 1, 1, samples=True) for slot in (2, 3, 1)]
    together = sample(logits.expand(3, -1), work, tables, OPS).wait()
    assert together[1][0].token_id == together[3][0].token_id == alone


def test_sampled_frequencies_follow_the_distribution():
    logits = torch.tensor([1.0, 0.0, 2.0, -1.0])
    params = SamplingParams(temperature=1.0)
    cases = [Case(logits, params, seed=seed) for seed in range(8_000)]
    drawn = torch.tensor([token.token_id for token in sample_all(cases)])
    assert chi_square(drawn.bincount(minlength=4).double(), 8_000 * logits.double().softmax(-1)) < 3.1


@pytest.mark.parametrize("options", [{}, {"top_k": 20}, {"top_p": 0.8}, {"min_p": 0.05, "temperature": 1.7}])
def test_drawn_tokens_follow_the_truncated_distribution_along_a_sequence(options):
    """Many positions of many seeds."""
    logits = 2 * torch.randn(60, generator=torch.Generator().manual_seed(3))
    sampling = SamplingParams(**options)
    places = [(seed, length) for seed in range(80) for length in range(1, 61)]
    cases = [Case(logits, sampling, tokens=(0,) * length, num_prompt=1, seed=seed) for seed, length in places]
    drawn = torch.tensor([token.token_id for token in sample_all(cases)]).bincount(minlength=60).double()
    share = plain_truncate(logits / sampling.temperature, sampling).double().softmax(-1)
    assert drawn[share == 0].sum() == 0
    often = share * len(cases) > 5
    assert chi_square(drawn[often], len(cases) * share[often]) < 3.1


def kept(logits: list[float], **options) -> list[int]:
    row = torch.tensor([logits])
    values, ids = row.topk(len(logits))
    left, complete = survivors(
        values, row, [Draw(0, **{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **options}, key=(0, 0))]
    )
    assert complete.all()
    return sorted(ids[left].tolist())


def test_top_k_keeps_the_k_likeliest():
    assert kept([1.0, 3.0, 2.0, 0.0], top_k=2) == [1, 2]
    assert kept([1.0, 3.0, 2.0, 0.0], top_k=-1) == [0, 1, 2, 3]


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    assert kept(logits, top_p=0.5) == [0]
    assert kept(logits, top_p=0.6) == [0, 1]
    assert kept(logits, top_p=1e-9) == [0]


def test_min_p_is_relative_to_the_likeliest():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    assert kept(logits, min_p=0.25) == [0, 1, 2]


def test_repetition_penalty_counts_the_prompt_and_presence_only_the_answer():
    assert (
        choose(
            [2.0, 1.9, 0.0], SamplingParams(temperature=0, repetition_penalty=1.5), tokens=(0,), num_prompt=1
        ).token_id
        == 1
    )
    assert (
        choose([2.0, 1.9, 0.0], SamplingParams(temperature=0, presence_penalty=1), tokens=(0,), num_prompt=1).token_id
        == 0
    )
    assert (
        choose([2.0, 1.9, 0.0], SamplingParams(temperature=0, presence_penalty=1), tokens=(0, 0), num_prompt=1).token_id
        == 1
    )


def test_frequency_penalty_grows_with_the_count():
    params = SamplingParams(temperature=0, frequency_penalty=0.4)
    assert choose([2.0, 1.5, 0.0], params, tokens=(2, 0), num_prompt=1).token_id == 0
    assert choose([2.0, 1.5, 0.0], params, tokens=(2, 0, 0), num_prompt=1).token_id == 1


def test_no_end_before_min_tokens():
    params = SamplingParams(temperature=0, min_tokens=2, stop_token_ids=[1])
    assert choose([2.0, 1.0, 0.5], params, tokens=(3, 3), num_prompt=1, stop=(0,)).token_id == 2
    assert choose([2.0, 1.0, 0.5], params, tokens=(3, 3, 3), num_prompt=1, stop=(0,)).token_id == 0


def test_log_probabilities_are_of_the_raw_logits():
    params = SamplingParams(temperature=0, logprobs=2, presence_penalty=2)
    token = choose([2.0, 1.9, 0.0], params, tokens=(2, 0), num_prompt=1)
    scores = torch.tensor([2.0, 1.9, 0.0]).log_softmax(-1)
    assert token.token_id == 1
    assert token.rank == 2
    assert token.logprob == scores[1].item()
    assert token.top == ((0, scores[0].item()), (1, scores[1].item()))


def test_bias_is_added_before_penalties():
    params = SamplingParams(temperature=0, logit_bias={2: 2.5, 0: -100})
    assert choose([3.0, 2.0, 0.0], params).token_id == 2
    # 2.5 halved by the penalty for being in the prompt is below the 2 of token 1
    assert choose([3.0, 2.0, 0.0], params.with_(repetition_penalty=2.0), tokens=(2, 0)).token_id == 1


def test_only_allowed_tokens_are_chosen():
    params = SamplingParams(temperature=0, allowed_token_ids=[0, 2])
    assert choose([0.5, 3.0, 1.0], params).token_id == 2
    drawn = {choose([0.0, 9.0, 0.1], params.with_(temperature=1.0), seed=seed).token_id for seed in range(50)}
    assert drawn == {0, 2}


def test_a_bad_word_is_ruled_out_where_it_would_be_complete():
    word = ((1, 2, 0),)
    params = SamplingParams(temperature=0)
    assert choose([3.0, 2.0, 0.0], params, tokens=(0, 1, 2), num_prompt=1, bad_words=word).token_id == 1
    assert choose([3.0, 2.0, 0.0], params, tokens=(0, 2, 2), num_prompt=1, bad_words=word).token_id == 0
    assert choose([3.0, 2.0, 0.0], params, tokens=(0, 1, 2), num_prompt=2, bad_words=word).token_id == 0, "the prompt"
    assert choose([3.0, 2.0, 0.0], params, bad_words=((0,), (1,), (0, 1, 0))).token_id == 2


def test_a_constraint_that_leaves_only_banned_tokens_wins_over_the_ban():
    params = SamplingParams(allowed_token_ids=[1, 2], min_tokens=5, stop_token_ids=[1])
    for temperature in (0, 0.01, 3.0):
        one = params.with_(temperature=temperature, allowed_token_ids=[1])
        assert choose([3.0, 2.0, 0.0], one).token_id == 1
        assert choose([3.0, 2.0, 0.0], params.with_(temperature=temperature)).token_id == 2


def test_end_tokens_that_the_model_does_not_have_ban_nothing():
    params = SamplingParams(temperature=0, min_tokens=5, stop_token_ids=[2, 92542])
    assert choose([1.0, 2.0, 3.0], params, stop=(151645,)).token_id == 1


def test_all_log_probabilities_and_more_than_there_are():
    every = choose([2.0, 1.9, 0.0], SamplingParams(temperature=0, logprobs=-1)).top
    assert [token for token, _ in every] == [0, 1, 2]
    assert choose([2.0, 1.9, 0.0], SamplingParams(temperature=0, logprobs=7)).top == every
    assert choose([2.0, 1.9, 0.0], SamplingParams(temperature=0, logprobs=0)).top == ()


def test_named_tokens_are_reported_with_their_ranks_in_place_of_the_likeliest():
    """The definition is vLLM's: log-probabilities of the raw logits, of exactly these tokens and the chosen one."""
    params = SamplingParams(temperature=0, logprob_token_ids=[2, 0, 1], allowed_token_ids=[3])
    token = choose([2.0, 1.9, 0.0, -1.0], params)
    scores = torch.tensor([2.0, 1.9, 0.0, -1.0]).log_softmax(-1).tolist()
    assert (token.token_id, token.rank, token.logprob) == (3, 4, scores[3])
    assert token.top == ((2, scores[2]), (0, scores[0]), (1, scores[1]))
    assert token.top_ranks == (3, 1, 2)


def test_a_named_token_that_cannot_be_drawn_is_left_out():
    params = SamplingParams(temperature=0, logprob_token_ids=[0, 2])
    token = choose([5.0, 1.0, 2.0, 0.0], params, mask=bits_of([1, 2], words=1))
    assert (token.top_ranks, [token_id for token_id, _ in token.top]) == ((1,), [2])


VOCABULARY = 70
ids = st.integers(0, VOCABULARY - 1)
options = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0, 0.01, 0.5, 1.0, 1.9]),
        "top_k": st.sampled_from([-1, 0, 1, 3, 20, 69, 70, 1000]),
        "top_p": st.sampled_from([1e-9, 0.3, 0.9, 0.999, 1.0]),
        "min_p": st.sampled_from([0.0, 0.02, 0.5, 1.0]),
        "presence_penalty": st.sampled_from([-2, 0.5, 2]),
        "frequency_penalty": st.sampled_from([-0.3, 0.5, 2]),
        "repetition_penalty": st.sampled_from([0.5, 1.3, 5.0]),
        "logprobs": st.sampled_from([None, 0, 1, 5, 20, -1]),
        "min_tokens": st.integers(0, 12),
        "stop_token_ids": st.lists(st.integers(0, 2 * VOCABULARY), max_size=4),
        "logit_bias": st.dictionaries(ids, st.sampled_from([-100, -1.5, 2.0, 100]), max_size=5),
        "allowed_token_ids": st.lists(ids, min_size=1, max_size=30),
    },
)


@st.composite
def cases(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = draw(st.sampled_from([0.1, 2.0, 8.0])) * torch.randn(VOCABULARY, generator=generator)
    if draw(st.booleans()):
        logits = logits.round()  # ties
    tokens = draw(st.lists(st.integers(0, 9), min_size=1, max_size=12))
    return Case(
        logits,
        SamplingParams(max_tokens=20, **draw(options)),
        tuple(tokens),
        draw(st.integers(1, len(tokens))),
        draw(st.integers(-(2**64), 2**64)),
        tuple(draw(st.lists(ids, max_size=3))),
        tuple(draw(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple), max_size=4))),
    )


@settings(max_examples=60)
@given(st.lists(cases(), min_size=1, max_size=7), st.sampled_from([1024, 40, 8, 1]))
def test_a_batch_gives_each_row_what_the_definition_says(batch, candidates):
    """Whatever neighbours want, and however few candidates are looked at before a row is sorted as a whole."""
    before, draw_module.CANDIDATES = draw_module.CANDIDATES, candidates
    try:
        found = sample_all(batch)
        alone = [sample_all([case])[0] for case in batch]
    finally:
        draw_module.CANDIDATES = before
    assert found == alone
    for case, token in zip(batch, found, strict=True):
        plain = plain_sample(
            case.logits, list(case.tokens), case.num_prompt, case.sampling, case.seed, case.stop, case.bad_words
        )
        assert (token.token_id, token.rank) == (plain.token_id, plain.rank)
        assert [value for _, value in token.top] == pytest.approx([value for _, value in plain.top], abs=1e-5)


@pytest.mark.parametrize("rows", [2, 5, 33])
def test_a_large_vocabulary_gives_the_same_bits_in_every_batch(rows):
    generator = torch.Generator().manual_seed(1)
    several = [{}, {"top_k": 50}, {"top_p": 0.9}, {"top_p": 0.95, "top_k": 4000}, {"min_p": 0.01}, {"temperature": 0}]
    batch = [
        Case(3 * torch.randn(30_011, generator=generator), SamplingParams(logprobs=2, **several[i % 6]), seed=i)
        for i in range(rows)
    ]
    assert sample_all(batch) == [sample_all([case])[0] for case in batch]


@pytest.mark.parametrize(("width", "words"), [(64, 2), (70, 2), (50, 2), (277, 9), (291, 9)])
def test_a_mask_leaves_the_tokens_whose_bits_are_set(width, words):
    """Rows that are narrower than the mask's words, as wide, and wider."""
    draw = random.Random(width)
    rows = [[draw.gauss(0, 1) for _ in range(width)] for _ in range(3)]
    masks = np.array([[draw.getrandbits(32) for _ in range(words)] for _ in rows], np.uint32).view(np.int32)
    expected = [
        [
            value if token < 32 * words and int(mask[token // 32]) >> (token % 32) & 1 else -math.inf
            for token, value in enumerate(row)
        ]
        for row, mask in zip(rows, masks, strict=True)
    ]
    found = apply_mask(torch.tensor(rows), torch.from_numpy(masks))
    assert found.tolist() == torch.tensor(expected).tolist()
    assert apply_mask(torch.tensor(rows[1]), torch.from_numpy(masks[1])).tolist() == found[1].tolist()


def test_a_mask_holds_whatever_else_sampling_does():
    mask = bits_of([2, 40], words=2)
    logits = torch.randn(64, generator=torch.Generator().manual_seed(1)).tolist()
    logits[5] = 30.0
    penalties = {"repetition_penalty": 2.0, "presence_penalty": 2.0, "logit_bias": {5: 100}}
    for options in ({"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.2}, penalties, {"allowed_token_ids": [2, 5]}):
        params = SamplingParams(temperature=1.0, **options)
        assert {choose(logits, params, seed=seed, mask=mask).token_id for seed in range(30)} <= {2, 40}


def test_reported_scores_are_among_the_allowed_tokens():
    token = choose([5.0, 1.0, 2.0, 0.0], SamplingParams(temperature=0, logprobs=3), mask=bits_of([1, 2], words=1))
    total = math.log(math.exp(1.0) + math.exp(2.0))
    assert (token.token_id, token.rank) == (2, 1)
    assert token.logprob == pytest.approx(2.0 - total)
    assert [token_id for token_id, _ in token.top] == [2, 1]
    assert [value for _, value in token.top] == pytest.approx([2.0 - total, 1.0 - total])


def test_a_mask_that_leaves_only_an_end_wins_over_min_tokens():
    params = SamplingParams(min_tokens=5, stop_token_ids=[2])
    mask = bits_of([2], words=1)
    for temperature in (0, 1.0):
        assert choose([3.0, 2.0, 0.0], params.with_(temperature=temperature), mask=mask).token_id == 2
    assert choose([3.0, 2.0, 9.0], params, mask=bits_of([1, 2], words=1)).token_id == 1


def test_rows_without_a_mask_stay_as_they_are():
    tables = Tables(limits(), CPU)
    for slot in (1, 2, 3):
        tables.admit(Admission(slot, (0, 1), 2, SamplingParams(temperature=0), 0, frozenset()))
    work = [
        Work(slot, 1, 1, samples=True, masks=bits_of([3], words=1)[None] if slot == 2 else None) for slot in (1, 2, 3)
    ]
    found = sample(torch.tensor([[0.0, 5.0, 1.0, 2.0]] * 3), work, tables, OPS).wait()
    assert {slot: token.token_id for slot, (token,) in found.items()} == {1: 1, 2: 3, 3: 1}


@pytest.mark.parametrize("options", [{"logprobs": 2}, {"logprob_token_ids": [1, 2]}])
def test_logits_that_are_no_numbers_are_said_so_once_and_have_no_probabilities(options, caplog):
    warn_of_nan.cache_clear()
    tables = Tables(limits(), CPU)
    tables.admit(Admission(1, (0, 1), 2, SamplingParams(temperature=0, **options), 0, frozenset()))
    for _ in range(2):
        (token,) = sample(torch.full((1, 4), math.nan), [Work(1, 1, 1, samples=True)], tables, OPS).wait()[1]
        assert token.logprob == -math.inf
        assert token.top == ()
    assert caplog.text.count("logits are no numbers") == 1
