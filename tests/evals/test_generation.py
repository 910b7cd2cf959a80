"""A task's generation_kwargs."""

from __future__ import annotations

import pytest

from tilewise.errors import InvalidRequest, UnknownOption
from tilewise.evals.harness.generation import behind_reasoning, sampling_of


@pytest.mark.parametrize(
    ("words", "temperature"),
    [
        ({}, 0.0),
        ({"do_sample": False, "temperature": 0.7}, 0.0),
        ({"temperature": 0.7}, 0.7),
        ({"do_sample": True}, 1.0),
        ({"do_sample": True, "temperature": 0.2}, 0.2),
        ({"do_sample": True, "temperature": 0}, 0.0),
    ],
)
def test_greedy_unless_draws_are_asked_for(words, temperature):
    sampling = sampling_of(words, 256, 5)
    assert sampling.temperature == temperature
    assert sampling.seed == (5 if temperature else None)


def test_lengths_and_stops():
    sampling = sampling_of({"until": ["\n", ""], "max_gen_toks": 12, "top_p": 0.5}, 256, 5)
    assert (sampling.max_tokens, sampling.stop, sampling.top_p) == (12, ("\n",), 0.5)
    assert sampling_of({"until": "###"}, 256, 5).stop == ("###",)
    assert sampling_of({"until": []}, 256, 5).max_tokens == 256


def test_a_word_that_is_none_is_refused():
    with pytest.raises(UnknownOption, match="top_kk"):
        sampling_of({"top_kk": 3}, 256, 5)
    with pytest.raises(InvalidRequest, match="until must be"):
        sampling_of({"until": [1]}, 256, 5)


@pytest.mark.parametrize(
    ("text", "answer"),
    [("<think>\nA or B?\n</think>\n\nB", "B"), ("<think>\nA or", ""), ("B", "B"), ("A or B?</think> B", "B")],
)
def test_reasoning_is_no_answer(text, answer):
    assert behind_reasoning(text) == answer
