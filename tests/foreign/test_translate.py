"""Options of vLLM that are spelt otherwise here, and the table that says so."""

from __future__ import annotations

import dataclasses

import pytest

from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig
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
