"""SamplingParams: wrong values and unknown names are refused with value, limit and remedy."""

from __future__ import annotations

import pickle

import pytest

from tilewise import SamplingParams, StructuredOutputsParams
from tilewise.errors import InvalidRequest, UnknownOption


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature must be a number >= 0, got -1"),
        ({"temperature": "hot"}, "temperature must be a number >= 0, got 'hot'"),
        ({"top_p": 0}, r"top_p must be in \(0, 1\], got 0"),
        ({"top_k": -2}, "top_k must be 0 or -1"),
        ({"min_p": 1.5}, "min_p must be in"),
        ({"n": 0}, "n must be a whole number"),
        ({"n": True}, "n must be a whole number"),
        ({"n": None}, "n must be a whole number from 1 to 16384, got None"),
        ({"n": 3, "temperature": 0}, "n must be 1 when using greedy sampling, got 3"),
        ({"max_tokens": 0}, "max_tokens must be a whole number >= 1, got 0"),
        ({"max_tokens": 2, "min_tokens": 3}, "min_tokens must be less than or equal to max_tokens=2, got 3"),
        ({"presence_penalty": 3}, r"presence_penalty must be in \[-2, 2\], got 3"),
        ({"repetition_penalty": 0}, "repetition_penalty must be a number > 0"),
        ({"stop": [""]}, "stop must be strings that are not empty"),
        ({"stop_token_ids": ["2"]}, "stop_token_ids must be whole numbers"),
        ({"stop_token_ids": [-1]}, "stop_token_ids must be whole numbers >= 0"),
        ({"stop": ["a", 5]}, "stop must be strings that are not empty"),
        ({"stop": [[]]}, "stop must be strings that are not empty"),
        ({"stop": [str(n) for n in range(65)]}, "stop may have at most 64 entries, got 65: send fewer"),
        ({"stop_token_ids": range(129)}, "stop_token_ids must be whole numbers"),
        ({"stop_token_ids": [*range(129)]}, "stop_token_ids may have at most 128 entries, got 129"),
        ({"logprobs": -2}, r"logprobs must be -1 \(all tokens\) or a whole number >= 0, got -2"),
        ({"logprobs": True}, "logprobs must be -1"),
        ({"logit_bias": {5: 100.5}}, r"logit_bias must be a dict from token ids to numbers in \[-100, 100\], got"),
        ({"logit_bias": {-5: 1}}, "logit_bias must be a dict from token ids"),
        ({"logit_bias": {"1" * 5000: 1}}, "logit_bias must be a dict from token ids"),
        ({"logit_bias": {"five": 1}}, "logit_bias must be a dict from token ids"),
        ({"logit_bias": {5: "1"}}, "logit_bias must be a dict from token ids"),
        ({"logit_bias": {5: float("nan")}}, "logit_bias must be a dict from token ids"),
        ({"logit_bias": [5]}, "logit_bias must be a dict from token ids"),
        ({"allowed_token_ids": []}, r"allowed_token_ids must be token ids, at least one, got \(\)"),
        ({"allowed_token_ids": [1.5]}, "allowed_token_ids must be token ids"),
        ({"bad_words": ["ok", ""]}, "bad_words must be strings that are not empty"),
        ({"bad_words": [str(n) for n in range(129)]}, "bad_words may have at most 128 entries, got 129"),
        ({"temperature": None}, "temperature must be a number >= 0, got None"),
        ({"temperature": float("nan")}, "temperature must be a number >= 0, got nan"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty must be a number > 0, got inf"),
        ({"structured_outputs": {"regex": "a"}}, r"structured_outputs must be StructuredOutputsParams\(...\), got {"),
    ],
)
def test_a_value_outside_its_range_is_refused(options, message):
    with pytest.raises(InvalidRequest, match=message):
        SamplingParams(**options)


def test_an_unknown_sampling_keyword_offers_the_nearest():
    with pytest.raises(UnknownOption, match=r"no option 'max_token'. Did you mean max_tokens\?"):
        SamplingParams(max_token=5)


def test_stop_takes_one_string_or_several():
    assert SamplingParams(stop="a").stop_strings == ("a",)
    assert SamplingParams(stop=["a", "b"]).stop_strings == ("a", "b")
    assert SamplingParams().stop_strings == ()


def test_temperatures_too_low_to_divide_by_are_raised(caplog):
    assert SamplingParams(temperature=1e-6).temperature == 0.01
    assert "temperature 1e-06 is raised to 0.01" in caplog.text
    assert SamplingParams(temperature=0).greedy


def test_values_that_json_spells_otherwise():
    assert SamplingParams(logit_bias={"42": -100, 7: 1.5}).logit_bias == {42: -100, 7: 1.5}
    assert SamplingParams(seed=-1).seed is None


def test_lists_lose_their_repetitions_and_nobody_changes_them_later():
    bias = {3: 1.0}
    params = SamplingParams(bad_words=["a", "b", "a"], allowed_token_ids=[3, 3], stop_token_ids=[1, 1], logit_bias=bias)
    bias[4] = 2.0
    assert (params.bad_words, params.allowed_token_ids, params.stop_ids) == (("a", "b"), (3,), (1,))
    assert params.logit_bias == {3: 1.0}


def test_sampling_params_survive_pickling():
    params = SamplingParams(temperature=0.5, stop_token_ids=[2, 92542], seed=7, logit_bias={3: 1}, bad_words=["a"])
    assert pickle.loads(pickle.dumps(params)) == params


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "must use one kind of structured outputs constraint but none are specified: give one of json, regex"),
        ({"json_object": False}, "none are specified"),
        ({"json": {}, "regex": "a"}, "only use one kind .* but multiple are specified: json, regex"),
        ({"choice": ["a"], "json_object": True}, "multiple are specified: choice, json_object"),
        ({"json": ["a"]}, r"json must be a JSON schema, as text or as a dict, got \['a'\]"),
        ({"regex": 5}, "regex must be a string, got 5"),
        ({"choice": []}, "choice must be a list of strings that are not empty"),
        ({"choice": ["a", ""]}, "choice must be a list of strings that are not empty"),
        ({"choice": "ab"}, "choice must be a list of strings that are not empty, got 'ab'"),
        ({"grammar": {}}, "grammar must be a string"),
        ({"json_object": 1}, "json_object must be true or false, got 1"),
        ({"json": {}, "whitespace_pattern": 1}, "whitespace_pattern must be a string, got 1"),
        (
            {"json": {}, "whitespace_pattern": " ", "disable_any_whitespace": True},
            "either whitespace_pattern or disable",
        ),
        ({"regexp": "a"}, r"StructuredOutputsParams has no option 'regexp'. Did you mean regex\?"),
    ],
)
def test_a_wrong_form_of_answers_is_refused(options, message):
    with pytest.raises(InvalidRequest, match=message):
        StructuredOutputsParams(**options)


def test_forms_of_answers_survive_pickling():
    params = SamplingParams(structured_outputs=StructuredOutputsParams(choice=["a", "b"]))
    assert pickle.loads(pickle.dumps(params)) == params
    assert params.structured_outputs == StructuredOutputsParams(choice=("a", "b"))


def test_the_largest_number_is_named_to_whoever_exceeds_it():
    with pytest.raises(InvalidRequest, match=r"^max_tokens must be a whole number >= 1, at most 2147483647, got 10000"):
        SamplingParams(max_tokens=10**12)
