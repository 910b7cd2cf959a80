"""Every name that vLLM 0.33 and 0.10 have, read from their packages, has a fate: it works, is named, or is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.called import read_settings
from tests.data import VERSIONS, names_of_vllm
from tilewise.cli import TILEWISE
from tilewise.cli.flags.flag import BadUsage, names_of
from tilewise.cli.flags.parse import CommandLine
from tilewise.cli.flags.settings import FOREIGN, serve_flags
from tilewise.config import EngineConfig
from tilewise.environment import VARIABLES, Environment
from tilewise.errors import InvalidConfig
from tilewise.server.config import ServerConfig

NEED_OTHERS = {
    "--enable-log-outputs": "--enable-log-requests",
    "--enable-auto-tool-choice": "--tool-call-parser=hermes",
}
"""Flags that do something together with another alone, in vLLM too."""


def names(section: str, *versions: str) -> dict[str, dict[str, Any]]:
    """Of all versions, the newer first."""
    found: dict[str, dict[str, Any]] = {}
    for version in versions or VERSIONS:
        for name, entry in names_of_vllm(version, section).items():
            found.setdefault(name, entry)
    return found


SERVE = names("serve")


def test_the_lists_are_whole():
    """Counted by hand in vLLM 0.33's parsers; a list that shrinks would test nothing."""
    assert len(names("serve", "0.33")) > 300
    assert len(names("environment", "0.33")) > 300
    assert {"--seed", "--kv-cache-dtype", "--enable-auto-tool-choice", "--api-server-count"} <= set(SERVE)
    assert {"--swap-space", "--task", "--guided-decoding-backend", "--disable-log-requests"} <= set(SERVE)


def test_every_flag_of_serve_is_known_with_its_short_names():
    by_name = {written: flag for flag in serve_flags() for written in (flag.dashed, flag.other, flag.short)}
    assert SERVE.keys() <= by_name.keys()
    pairs = [(name, other) for name in SERVE for other in SERVE[name].get("other", ())]
    assert [pair for pair in pairs if by_name.get(pair[1]) is not by_name[pair[0]]] == []


def examples(entry: dict[str, Any]) -> list[list[str]]:
    """Words behind a flag that ask for something."""
    kind = entry["kind"]
    if entry.get("choices"):
        return [[str(choice)] for choice in entry["choices"]]
    if kind == "bool":
        return [[], ["false"]]
    return [{"int": ["2"], "float": ["0.5"], "str": ["x"], "list": ["x"], "object": ["{}"]}[kind]]


NEED_MORE = ("--config", "--speculative-config", "--spec-method", "--spec-model", "--cuda-graph-sizes")
"""They need a file, or further keys."""


def test_every_flag_works_or_is_named_or_refused_by_its_name():
    lines = [[name, *words] for name in SERVE if name not in NEED_MORE for words in examples(SERVE[name])]
    assert [line for line in lines if not is_known(line)] == []


def is_known(line: list[str]) -> bool:
    """Return whether a flag and its value work, or are named or refused by the flag's name."""
    name, *words = line
    lines, refusal = outcome([*line, *filter(None, [NEED_OTHERS.get(name)])])
    entry = next((item for item in FOREIGN if item.name == name[2:].replace("-", "_")), None)
    if refusal:
        is_named = name.removeprefix("--").replace("-", "_") in refusal.replace("-", "_")
        return is_named and "There is no flag" not in refusal
    if entry and entry.name not in EngineConfig.__dataclass_fields__ and not entry.not_logged and words != ["{}"]:
        return any(name in said for said in lines)
    return True


def outcome(words: list[str]) -> tuple[list[str], str]:
    """Lines about what was taken, and the refusal or an empty text."""
    try:
        return read_settings(words, {}).lines, ""
    except (InvalidConfig, BadUsage) as refusal:
        return [], str(refusal)


def at_default(name: str, entry: dict[str, Any]) -> list[str]:
    value = entry["default"]
    return [f"{name}={json.dumps(value) if isinstance(value, bool) else value}"]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_flag_of_serve_is_taken_at_vllms_default(version):
    entries = names("serve", version)
    asked = {name: entry for name, entry in entries.items() if entry.get("default") is not None}
    refusals = {name: outcome(at_default(name, entry))[1] for name, entry in asked.items()}
    assert {name: refusal for name, refusal in refusals.items() if refusal} == {}


@pytest.mark.parametrize("section", ["EngineArgs", "AsyncEngineArgs", "LLM"])
@pytest.mark.parametrize("version", VERSIONS)
def test_every_keyword_is_taken_at_vllms_default(section, version):
    defaults = {
        name: entry.get("default", {} if entry["kind"] == "object" else None)
        for name, entry in names_of_vllm(version, section).items()
    }
    config = EngineConfig.of(**{**defaults, "model": "demo"})
    assert config.model == "demo"
    assert config.max_num_seqs == EngineConfig.max_num_seqs


@pytest.mark.parametrize("version", VERSIONS)
def test_every_variable_has_a_fate(version):
    known = {entry.name for entry in VARIABLES}
    assert len(known) == len(VARIABLES), "a variable that does something has no other fate"
    assert set(names_of_vllm(version, "environment")) - known == set()
    assert Environment(dict.fromkeys(names_of_vllm(version, "environment"), "1")).unknown() == []


@pytest.mark.parametrize("verb", ["bench serve", "bench throughput", "bench latency"])
def test_every_flag_of_bench_is_known(verb):
    found = TILEWISE
    for word in verb.split():
        found = found.verb(word)
    known = {name for flag in found.flags for name in (flag.dashed, flag.other, flag.short)}
    known |= {f"--no-{flag.name.replace('_', '-')}" for flag in found.flags if flag.is_switch}
    assert set(names(verb)) - known == set()


def test_every_flag_of_run_batch_is_known():
    flags = TILEWISE.verb("run-batch").flags
    known = {written for flag in flags for written in (flag.dashed, flag.other, flag.short)}
    assert set(names("run-batch")) - known == set()


def test_an_alias_is_no_name_to_be_completed():
    assert CommandLine.read(["--device", "cpu"], serve_flags()).values == {"device": "cpu"}
    with pytest.raises(BadUsage, match=r"There is no flag --device-mem\b"):
        CommandLine.read(["--device-mem", "0.5"], serve_flags())


def test_an_option_has_no_other_fate():
    """Whoever adds an option takes its name out of the lists of vLLM's others."""
    options = names_of(EngineConfig) | names_of(ServerConfig)
    assert not [entry.name for entry in FOREIGN if entry.name in options]
