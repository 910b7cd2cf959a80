"""From a command line to what engine and server are asked for, and what has to be said about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tilewise.cli.flags.file import flags_of_file
from tilewise.cli.flags.flag import BadUsage
from tilewise.cli.flags.parse import CommandLine
from tilewise.cli.flags.table import DEFAULTS, FOREIGN, OWN_NAMES, names_of, serve_flags
from tilewise.cli.flags.variables import OPTIONS, explain_variables, refuse_unknown, unknown_variables
from tilewise.config import EngineConfig
from tilewise.foreign.translate import translate
from tilewise.server.config import ServerConfig

_SECRET = ("api_key", "hf_token")


@dataclass(frozen=True)
class Settings:
    engine: EngineConfig
    server: ServerConfig
    given: dict[str, Any] = field(default_factory=dict)
    """Flags that were given, secrets hidden."""
    lines: list[str] = field(default_factory=list)
    """What became of flags and variables that are no options."""
    warnings: list[str] = field(default_factory=list)


def read_settings(words: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """The command line wins over the file of --config, and that over the environment.

    Raises BadUsage for a line that cannot be read, and InvalidConfig for one that cannot be done.
    """
    return settle(values_of_line(CommandLine.read(words, serve_flags())), environment)


def values_of_line(line: CommandLine) -> dict[str, Any]:
    """With those of the file that it names."""
    file = line.values.get("config")
    return (flags_of_file(file, serve_flags()) if file else {}) | _with_model(line)


def _variables(environment: Mapping[str, str]) -> dict[str, Any]:
    flags = {flag.name: flag for flag in serve_flags()}
    named = {name: variable for variable, name in OPTIONS.items() if environment.get(variable)}
    values: dict[str, Any] = {}
    for name, variable in named.items():
        line = CommandLine.read([f"{flags[name].dashed}={environment[variable]}"], [flags[name]])
        values |= line.values
    return values


def _with_model(line: CommandLine) -> dict[str, Any]:
    if len(line.positional) > 1:
        raise BadUsage(f"One model is served, got {' and '.join(line.positional)}.")
    named = line.values.get("model")
    if line.positional and named not in (None, line.positional[0]):
        raise BadUsage(f"The model is {line.positional[0]} or --model {named}: give one of them.")
    values = {name: value for name, value in line.values.items() if name != "config"}
    return values | ({"model": line.positional[0]} if line.positional else {})


def settle(values: dict[str, Any], environment: Mapping[str, str]) -> Settings:
    """Checks everything, so that a mistake costs no loading time."""
    values = _variables(environment) | values
    if values.get("fail_on_environ_validation"):
        refuse_unknown(environment)
    of_engine, of_server = names_of(EngineConfig), names_of(ServerConfig)
    found = translate(values, of_engine | of_server | OWN_NAMES, FOREIGN)
    wanted = DEFAULTS | found.options
    if wanted.get("max_log_len") is not None and not wanted.get("enable_log_requests"):
        found.ignored.add("max_log_len", "requests are not logged without --enable-log-requests")
        del wanted["max_log_len"]
    engine = EngineConfig(**{name: value for name, value in wanted.items() if name in of_engine})
    server = ServerConfig(**{name: value for name, value in wanted.items() if name in of_server})
    given = {name: "***" if name in _SECRET else value for name, value in values.items()}
    named = [f"--{name.replace('_', '-')}: {why}" for name, why in found.ignored.reasons.items()]
    lines = named + found.lines + explain_variables(environment)
    return Settings(engine, server, given, lines, found.warnings + unknown_variables(environment))
