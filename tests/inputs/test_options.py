"""Sampling options at the border: ids that do not exist, and words that become token sequences."""

from __future__ import annotations

import pytest

from tilewise.config import EngineConfig
from tilewise.errors import InvalidRequest
from tilewise.inputs.options import bad_word_ids
from tilewise.sampling_params import SamplingParams


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logit_bias": {5: 1.0, 9999: 1.0}}, r"logit_bias: token id 9999 is out of vocabulary, which has \d+ ids"),
        ({"allowed_token_ids": [5, 9999]}, "allowed_token_ids: token id 9999 is out of vocabulary"),
        ({"logprob_token_ids": [5, 9999]}, "logprob_token_ids: token id 9999 is out of vocabulary"),
        ({"logprobs": 21}, "Requested sample logprobs of 21, which is greater than max allowed: 20"),
        ({"logprobs": -1}, "Requested sample logprobs of all, which is greater than max allowed: 20.*max_logprobs"),
        (
            {"bad_words": [f"a{n}" for n in range(100)]},
            "bad_words come to 200 token sequences of 580 tokens, the most are 128",
        ),
        ({"bad_words": ["ab!" * 400]}, r"bad_words come to 2 token sequences of \d+ tokens, the most are 128 of 1024"),
        ({"bad_words": ["  "]}, "bad_words: '  ' is no token at all"),
    ],
)
def test_options_that_the_model_cannot_follow_are_refused(make_preparer, options, message):
    with pytest.raises(InvalidRequest, match=message):
        make_preparer().prompt("a", [], SamplingParams(**options))


def test_a_prompt_of_ids_is_checked_too(make_preparer, tokenizer):
    with pytest.raises(InvalidRequest, match=f"token id 9999 .* has {tokenizer.vocab_size} ids"):
        make_preparer().prompt([5, 9999], [], SamplingParams())


def test_end_tokens_of_other_models_are_accepted(make_preparer):
    request = make_preparer().prompt("a", [], SamplingParams(stop_token_ids=[2, 92542]))
    assert request.sampling.stop_ids == (2, 92542)


@pytest.mark.parametrize("most", [-1, 50])
def test_the_engine_may_allow_more_log_probabilities(make_preparer, most):
    preparer = make_preparer(config=EngineConfig(max_logprobs=most))
    assert preparer.prompt("a", [], SamplingParams(logprobs=50)).sampling.logprobs == 50


def test_bad_words_are_ruled_out_at_the_start_and_behind_a_space(make_preparer, tokenizer):
    words = make_preparer().prompt("a", [], SamplingParams(bad_words=["red", " panda"])).bad_words
    for text in ("red", " red", "panda", " panda"):
        ids = tuple(tokenizer.encode_raw(text))
        assert any(ids[-len(word) :] == word for word in words), text
    assert len(set(words)) == len(words)


def test_a_spaced_form_that_ends_in_the_plain_one_is_not_listed(tokenizer):
    """`!` is one token and ` !` two, of which it is the last."""
    assert bad_word_ids(["!"], tokenizer) == (tuple(tokenizer.encode_raw("!")),)


def test_a_special_token_may_be_a_bad_word(tokenizer):
    assert (tokenizer.special_id("<|im_end|>"),) in bad_word_ids(["<|im_end|>"], tokenizer)
