"""Every keyword of vLLM's Python calls has a fate: the lists are read from its released packages."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path

import numpy as np
import pytest

from tilewise import LLM, EngineArgs, SamplingParams
from tilewise.errors import InvalidField, InvalidRequest, UnknownOption
from tilewise.foreign.keywords import refused, take_all
from tilewise.ignored import LOG, Ignored
from tilewise.sampling_params import FOREIGN, GuidedDecodingParams, RequestOutputKind, StructuredOutputsParams

LISTS = {
    path.stem: json.loads(path.read_text("utf-8")) for path in (Path(__file__).parent / "data").glob("vllm-*.json")
}
ENGINE = ("LLM", "EngineArgs", "AsyncEngineArgs")
FIELDS = {field.name for field in dataclasses.fields(SamplingParams)}


def named(*sections: str):
    return [
        pytest.param(version, section, name, entry, id=f"{version}-{section}-{name}")
        for version, found in LISTS.items()
        for section in sections
        for name, entry in found[section].items()
    ]


def default_of(entry):
    return entry.get("default")


@pytest.mark.parametrize(("version", "section", "name", "entry"), named("SamplingParams"))
def test_sampling_params_take_every_keyword_at_its_default(version, section, name, entry):
    assert (name in FIELDS) + (name in FOREIGN) + (name == "guided_decoding") == 1
    value = RequestOutputKind.CUMULATIVE if name == "output_kind" else default_of(entry)
    params = SamplingParams(**{name: value})
    assert params == SamplingParams()
    assert getattr(params, name) in (value, None)


@pytest.mark.parametrize(("version", "section", "name", "entry"), named("LLM.chat", "LLM.generate"))
def test_calls_have_every_argument(version, section, name, entry):
    method = getattr(LLM, section.partition(".")[2])
    argument = inspect.signature(method).parameters[name]
    if "default" in entry:
        assert argument.default == entry["default"]


def test_engine_args_have_every_option():
    names = {name for found in LISTS.values() for section in ENGINE for name in found[section]}
    assert len(names) > 100
    assert names <= {field.name for field in dataclasses.fields(EngineArgs)}


def test_engine_args_are_a_dataclass_that_programs_change():
    args = EngineArgs("demo", max_model_len=64, limit_mm_per_prompt={"image": 1}, swap_space=4)
    args.seed = 7
    assert dataclasses.asdict(args) == vars(args)
    assert args.given == {"max_model_len": 64, "limit_mm_per_prompt": {"image": 1}, "swap_space": 4, "seed": 7}
    with pytest.raises(
        UnknownOption, match=r"EngineArgs has no option 'max_model_length'. Did you mean max_model_len\?"
    ):
        EngineArgs(max_model_length=64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"best_of": 3}, "best_of=3 is not possible: All n answers are returned"),
        ({"use_beam_search": True}, "use_beam_search=True is not possible: Call LLM.beam_search"),
        ({"logits_processors": [len]}, "logits_processors=.* Functions of a caller do not run"),
        ({"thinking_token_budget": 9}, "set max_tokens"),
        ({"flat_logprobs": True}, "lists of dicts"),
        ({"stop": "a", "detokenize": False}, "stop strings are looked for in text"),
        ({"guided_decoding": 5}, "structured_outputs must be StructuredOutputsParams"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens must be -1"),
        ({"output_kind": 7}, "output_kind must be a RequestOutputKind, got 7"),
        ({"skip_special_tokens": "no"}, "skip_special_tokens must be true or false, got 'no'"),
    ],
)
def test_what_would_change_answers_is_refused_by_name(options, message):
    with pytest.raises(InvalidField, match=message) as caught:
        SamplingParams(**options)
    assert caught.value.param in {*options, "structured_outputs"}


def test_what_has_no_effect_is_named_once(caplog, monkeypatch):
    monkeypatch.setattr(LOG, "_logged", set())
    for _ in range(2):
        SamplingParams(skip_clone=True, extra_args={"a": 1})
    assert [record.getMessage().partition(" has no effect")[0] for record in caplog.records] == [
        "SamplingParams: skip_clone",
        "SamplingParams: extra_args",
    ]


def test_assigned_values_are_checked_and_kept_as_constructed_ones():
    params = SamplingParams(temperature=0)
    params.max_tokens, params.stop, params.seed = np.int64(64), "a", -1
    assert (params.max_tokens, params.stop_strings, params.seed) == (64, ("a",), None)
    assert type(params.max_tokens) is int
    with pytest.raises(InvalidField, match="max_tokens must be a whole number >= 1, got 0"):
        params.max_tokens = 0
    with pytest.raises(UnknownOption, match=r"Did you mean max_tokens\?"):
        params.max_token = 5
    with pytest.raises(InvalidField, match="best_of=2 is not possible"):
        params.best_of = 2
    assert params.max_tokens == 64


def test_a_clone_is_another_one_and_is_checked_as_a_whole():
    params = SamplingParams(temperature=0, logit_bias={3: 1.0})
    copy = params.clone()
    copy.max_tokens = 5
    copy.logit_bias[4] = 2.0
    assert (params.max_tokens, params.logit_bias) == (16, {3: 1.0})
    params.n = 2
    with pytest.raises(InvalidField, match="n must be 1 when using greedy sampling"):
        params.clone()


def test_numbers_of_numpy_are_numbers():
    params = SamplingParams(
        n=np.int32(2),
        temperature=np.float32(0.5),
        stop_token_ids=np.array([1, 2]),
        logit_bias={np.int64(3): np.float64(1)},
    )
    assert (params.n, params.temperature, params.stop_ids, params.logit_bias) == (2, 0.5, (1, 2), {3: 1.0})
    assert [type(params.n), type(params.temperature), type(params.stop_ids[0])] == [int, float, int]
    assert SamplingParams(ignore_eos=np.bool_(True)).ignore_eos is True


def test_from_optional_leaves_defaults_where_there_is_none():
    assert SamplingParams.from_optional(n=None, temperature=None, seed=None) == SamplingParams()
    assert SamplingParams.from_optional(max_tokens=None).max_tokens is None


def test_the_older_name_of_structured_outputs():
    form = GuidedDecodingParams(choice=["a", "b"], backend="xgrammar:no-fallback", disable_fallback=True)
    assert isinstance(form, StructuredOutputsParams)
    params = SamplingParams(guided_decoding=form)
    assert params.structured_outputs is params.guided_decoding is form
    assert GuidedDecodingParams.from_optional(json=None, regex=None) is None
    assert GuidedDecodingParams.from_optional(regex="a+", backend=None) == GuidedDecodingParams(regex="a+")
    with pytest.raises(InvalidRequest, match="another name of structured_outputs: give one"):
        SamplingParams(guided_decoding=form, structured_outputs=form)


def test_a_number_asks_for_nothing_however_it_is_written_but_true_is_none():
    foreign, ignored = {"best_of": refused("Send the request several times.", 1)}, Ignored()
    take_all({"best_of": 1.0}, foreign, ignored)
    with pytest.raises(InvalidField, match="best_of=True is not possible: Send the request"):
        take_all({"best_of": True}, foreign, ignored)
