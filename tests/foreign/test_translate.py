"""Options of vLLM that are spelt otherwise here, and the table that says so."""

from __future__ import annotations

import dataclasses

import pytest

from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig
from tilewise.foreign.additional import FLASHCOMM_TOKENS
from tilewise.foreign.table import PROGRAM, SERVER, ForeignOption
from tilewise.foreign.translate import translate
from tilewise.server.config import ServerConfig

ENTRIES = {f"{entry.name} ({entry.fate})": entry for entry in (*PROGRAM, *SERVER)}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_what_has_another_name_is_put_where_it_belongs(entry: ForeignOption):
    assert (entry.fate == "other name") is (entry.put is not None)


def test_no_option_is_stated_twice():
    of_engine, of_server = ({field.name for field in dataclasses.fields(kind)} for kind in (EngineConfig, ServerConfig))
    for table, options in ((PROGRAM, of_engine), (SERVER, of_engine | of_server)):
        names = [entry.name for entry in table]
        assert len(set(names)) == len(names)
        assert not set(names) & options


@pytest.mark.parametrize(
    ("given", "option", "value"),
    [
        ({"spec_method": "ngram", "spec_tokens": 3}, "speculative_config",
         {"method": "ngram", "num_speculative_tokens": 3}),
        ({"ngram_prompt_lookup_max": 4, "speculative_config": {"prompt_lookup_max": 2}}, "speculative_config",
         {"prompt_lookup_max": 2}),
        ({"guided_decoding_backend": "xgrammar"}, "structured_outputs_config", {"backend": "xgrammar"}),
        ({"cuda_graph_sizes": ["1", "8"]}, "max_graph_size", 8),
        ({"disable_mm_preprocessor_cache": True}, "mm_processor_cache_gb", 0),
        ({"disable_mm_preprocessor_cache": False}, "mm_processor_cache_gb", None),
        ({"disable_log_requests": True}, "enable_log_requests", False),
        ({"spec_method": None}, "speculative_config", None),
    ],
)  # fmt: skip
def test_options_by_another_name(given, option, value):
    known = ("speculative_config", "structured_outputs_config", "max_graph_size", "enable_log_requests")
    found = translate(given, known, SERVER)
    assert found.options.get(option) == value
    assert not set(given) & set(found.options) - {"speculative_config"}


def test_what_a_server_alone_has_a_use_for_is_named_in_a_program():
    found = translate({"disable_log_requests": True}, (), PROGRAM)
    assert found.ignored.reasons == {"disable_log_requests": "it is about a server"}
    assert found.options == {}


def test_everything_that_is_not_possible_is_named_at_once():
    with pytest.raises(InvalidConfig, match=r"cpu_offload_gb=4 is not possible: .*\. enable_lora=True is not possible"):
        translate({"enable_lora": True, "cpu_offload_gb": 4}, (), PROGRAM)


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"enable_cpu_binding": True}, {"cpu_binding": True}),
        ({"enable_cpu_binding": False}, {"cpu_binding": False}),
        ({"enable_flashcomm1": True}, {"sequence_parallel_tokens": FLASHCOMM_TOKENS}),
        ({"enable_flashcomm1": False}, {"sequence_parallel_tokens": 0}),
        ({"weight_nz_mode": 1, "enable_weight_nz_layout": True, "torchair_graph_config": {"enabled": True}}, {}),
    ],
)
def test_keys_of_ascend_become_options(given: dict[str, object], options: dict[str, object]):
    found = translate({"additional_config": given}, ("cpu_binding", "sequence_parallel_tokens"), SERVER)
    assert (found.options, found.warnings) == (options, [])
    assert len(found.lines) == len(given)


def test_an_option_wins_over_a_key_of_ascend():
    config = EngineConfig.of(
        tensor_parallel_size=2, cpu_binding=False, sequence_parallel_tokens=8,
        additional_config={"enable_cpu_binding": True, "enable_flashcomm1": True},
    )  # fmt: skip
    assert (config.cpu_binding, config.sequence_parallel_tokens) == (False, 8)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ('{"enable_cpu_binding": true}', "additional_config must be an object"),
        (5, "additional_config must be an object"),
        (["enable_cpu_binding"], "additional_config must be an object"),
        ({"enable_cpu_binding": "true"}, "enable_cpu_binding must be True or False, got 'true'"),
        ({"enable_flashcomm1": 1}, "enable_flashcomm1 must be True or False, got 1"),
        ({"weight_nz_mode": 9}, "weight_nz_mode must be 0 or 1 or 2, got 9"),
        ({"weight_nz_mode": True}, "weight_nz_mode must be 0 or 1 or 2, got True"),
    ],
)
def test_what_ascend_cannot_be_told_is_refused(given: object, said: str):
    with pytest.raises(InvalidConfig, match=said):
        EngineConfig.of(additional_config=given)


@pytest.mark.parametrize("options", [5, [1], "num_frames"])
def test_media_options_that_are_no_object(options: object):
    with pytest.raises(InvalidConfig, match="media_io_kwargs: video must be an object, got"):
        EngineConfig.of(media_io_kwargs={"video": options})


def test_media_options_that_are_null():
    assert EngineConfig.of(media_io_kwargs={"video": None}) == EngineConfig()


def test_keys_that_nobody_knows_are_named_whatever_they_are():
    found = translate({"additional_config": {1: 2}}, (), SERVER)
    assert found.warnings == ["additional_config: '1' is not known and has no effect."]


@pytest.mark.parametrize("mode", ["banana", 99, -1, True])
def test_a_mode_of_the_compiler_that_there_is_not(mode: object):
    with pytest.raises(InvalidConfig, match=r"mode must be 0 to 3, or NONE"):
        EngineConfig.of(compilation_config={"mode": mode})


def test_no_size_to_capture_is_no_graphs():
    assert EngineConfig.of(compilation_config={"max_cudagraph_capture_size": 0}).enforce_eager
    assert not EngineConfig.of(compilation_config={"mode": 3, "level": "NONE"}).enforce_eager
