"""When a structured answer may end, and what its masks say."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from tests.inputs.vocabulary import small_tokenizer
from tilewise.engine.grammar import bits_of, ids_in
from tilewise.engine.sequence import SequenceState
from tilewise.inputs.grammar import Grammars
from tilewise.sampling_params import SamplingParams, StructuredOutputsParams
from tilewise.step import Work
from tilewise.types import Request

TOKENIZER = small_tokenizer()
END = TOKENIZER.special_id("<|im_end|>")
OTHER_END = TOKENIZER.special_id("<|endoftext|>")
A, B = TOKENIZER.encode_text("ab")
THINKING = OPENING, CLOSING = TOKENIZER.special_id("<think>"), TOKENIZER.special_id("</think>")


@pytest.fixture(scope="module")
def grammars():
    return Grammars(TOKENIZER, [END, OTHER_END, 10**6])


@pytest.fixture(scope="module")
def many_a(grammars):
    return grammars.compile(StructuredOutputsParams(regex="a+b?"))


def allowed(matcher) -> set[int]:
    return set(ids_in(matcher.masks()[0]))


def behind(grammar, tokens, ignore_eos=False):
    matcher = grammar.start(ignore_eos)
    for token in tokens:
        assert token in allowed(matcher)
        matcher.accept(token)
    return matcher


def test_bits_and_ids():
    tokens = [0, 31, 32, 63, 64, 95]
    mask = bits_of([*tokens, 96, -1], words=3)
    assert (mask.dtype, mask.shape) == (np.int32, (3,))
    assert [token for token in range(96) if mask[token // 32] >> (token % 32) & 1] == tokens == ids_in(mask)


def test_an_end_is_allowed_where_the_grammar_may_end(many_a):
    assert allowed(behind(many_a, [])) == {A}
    assert allowed(behind(many_a, [A])) == {A, B, END, OTHER_END}
    assert allowed(behind(many_a, [A, B])) == {END, OTHER_END}


@pytest.mark.parametrize("end", [END, OTHER_END])
def test_an_end_token_ends(many_a, end):
    matcher = behind(many_a, [A])
    assert matcher.finish_reason is None
    matcher.accept(end)
    assert (matcher.finish_reason, matcher.problem) == ("stop", "")


def test_ignore_eos_ends_only_what_has_nothing_left_to_say(many_a):
    assert allowed(behind(many_a, [A], ignore_eos=True)) == {A, B}
    assert allowed(behind(many_a, [A, B], ignore_eos=True)) == {END, OTHER_END}


def test_masks_have_no_bit_beyond_the_vocabulary(grammars):
    mask = behind(grammars.compile(StructuredOutputsParams(regex="(?s:.*)")), []).masks()[0]
    assert len(mask) == -(-TOKENIZER.vocab_size // 32)
    assert max(ids_in(mask)) < TOKENIZER.vocab_size
    assert not {TOKENIZER.special_id("<img>"), TOKENIZER.special_id("<IMG_CONTEXT>")} & set(ids_in(mask))


def test_matchers_of_one_grammar_do_not_disturb_each_other(many_a):
    one, other = (many_a.start(ignore_eos=False) for _ in range(2))
    one.accept(A)
    one.accept(B)
    assert (allowed(one), allowed(other)) == ({END, OTHER_END}, {A})


def test_a_token_that_is_not_allowed_ends_with_an_error(many_a, caplog):
    matcher = many_a.start(ignore_eos=False)
    matcher.accept(B)
    assert matcher.finish_reason == "error"
    assert matcher.problem
    assert "ends after 1 tokens" in caplog.text


def test_a_form_holds_behind_the_thinking(many_a):
    matcher = many_a.start(False, THINKING)
    assert allowed(matcher) == {OPENING}
    assert [matcher.count_allowed(drafts) for drafts in ([OPENING, B, CLOSING, A, END], [OPENING, END], [A])] == [
        4,
        1,
        0,
    ]
    rows = [set(ids_in(row)) for row in matcher.masks([OPENING, B, CLOSING])]
    anything = set(range(TOKENIZER.vocab_size)) - {END, OTHER_END}
    assert rows == [{OPENING}, anything, anything, {A}]
    for token in (OPENING, B, CLOSING, A, END):
        assert (allowed(matcher) >= {token}, matcher.finish_reason) == (True, None)
        matcher.accept(token)
    assert matcher.finish_reason == "stop"


def test_a_sequence_waits_for_the_token_that_decides_what_may_follow(many_a):
    request = Request("a", (5, 6, 7), SamplingParams(max_tokens=9), grammar=many_a)
    sequence = SequenceState.of(request, tokens_per_tile=4, max_model_len=64)
    assert (sequence.num_wanted, set(ids_in(sequence.masks()[0]))) == (3, {A})
    sequence.num_computed, sequence.num_tokens = 3, 4  # a step that samples is on its way
    assert sequence.num_wanted == 0
    sequence.append(A)
    assert (sequence.num_wanted, set(ids_in(sequence.masks()[0]))) == (1, {A, B, END, OTHER_END})


def test_work_with_a_mask_can_go_to_another_process(many_a):
    work = Work(1, 0, 3, True, masks=behind(many_a, [A]).masks())
    again = pickle.loads(pickle.dumps(work))
    assert again[:-1] == work[:-1]
    assert ids_in(again.masks[0]) == ids_in(work.masks[0])
