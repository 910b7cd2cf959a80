"""Sampling: penalties, truncation and noise against plain formulas and observed frequencies."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from tests.engine.fake import limits
from tilewise.engine.grammar import bits_of
from tilewise.runner.sampler import apply_mask, generator_at, sample, truncate
from tilewise.runner.tables import Tables
from tilewise.step import Admission, Work
from tilewise.types import SampledToken, SamplingParams

CPU = torch.device("cpu")


def choose(
    logits: list[float], sampling: SamplingParams, tokens=(0, 1), num_prompt=2, seed=5, stop=(), mask=None
) -> SampledToken:
    tables = Tables(limits(), CPU)
    tables.admit(Admission(1, tuple(tokens), num_prompt, sampling, seed, frozenset(stop)))
    work = Work(1, len(tokens) - 1, 1, samples=True, mask=mask)
    token = sample(torch.tensor([logits]), [work], tables)[1]
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
    together = sample(logits.expand(3, -1), work, tables)
    assert together[1].token_id == together[3].token_id == alone


def test_streams_of_neighbouring_seeds_and_positions_differ():
    draws = {
        torch.rand(1, generator=generator_at(seed, position, CPU)).item()
        for seed in range(20)
        for position in range(20)
    }
    assert len(draws) == 400


def test_sampled_frequencies_follow_the_distribution():
    logits = torch.tensor([1.0, 0.0, 2.0, -1.0])
    params = SamplingParams(temperature=1.0)
    counts = torch.zeros(4)
    for seed in range(4000):
        counts[choose(logits.tolist(), params, seed=seed).token_id] += 1
    torch.testing.assert_close(counts / 4000, logits.softmax(-1), atol=0.03, rtol=0)


def kept(logits: list[float], **options) -> list[int]:
    return truncate(torch.tensor(logits), SamplingParams(**options)).isfinite().nonzero().flatten().tolist()


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
    for options in ({"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.2}, {"repetition_penalty": 2.0, "presence_penalty": 2.0}):
        params = SamplingParams(temperature=1.0, **options)
        assert {choose(logits, params, seed=seed, mask=mask).token_id for seed in range(30)} <= {2, 40}


def test_reported_scores_are_among_the_allowed_tokens():
    token = choose([5.0, 1.0, 2.0, 0.0], SamplingParams(temperature=0, logprobs=3), mask=bits_of([1, 2], words=1))
    total = math.log(math.exp(1.0) + math.exp(2.0))
    assert (token.token_id, token.rank) == (2, 1)
    assert token.logprob == pytest.approx(2.0 - total)
    assert [token_id for token_id, _ in token.top] == [2, 1]
    assert [value for _, value in token.top] == pytest.approx([2.0 - total, 1.0 - total])
