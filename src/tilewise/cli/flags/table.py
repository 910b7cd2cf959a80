"""Every flag of `tilewise serve`, and the settings that a command line comes to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, get_type_hints

from tilewise.cli.flags.flag import BadUsage, Flag, Read, read_compilation, read_limits, read_paths
from tilewise.cli.flags.parse import CommandLine, flags_of_file
from tilewise.cli.flags.variables import OPTIONS, explain_variables, refuse_unknown, unknown_variables
from tilewise.config import EngineConfig
from tilewise.foreign.table import SERVER
from tilewise.foreign.translate import SHORT_NAMES, ForeignOption, translate
from tilewise.server.config import ServerConfig

_READ: dict[str, Read] = {
    "limit_mm_per_prompt": read_limits,
    "disable_access_log_for_endpoints": read_paths,
    "compilation_config": read_compilation,
}
FOREIGN = SERVER
_MAY_BE_BARE = ("hf_token",)
DEFAULTS = {"disable_log_stats": False}
"""Defaults of a server that are not those of an engine in a program."""

CONFIG = Flag("config", str | None, "this command", "YAML file of flags by their names; the command line wins over it")
STRICT = Flag(
    *("fail_on_environ_validation", bool, "this command"),
    "refuse to start when an environment variable is VLLM_... and unknown",
    False,
)


OWN_NAMES = frozenset((CONFIG.name, STRICT.name))


def serve_flags() -> list[Flag]:
    return list(_serve_flags())


@cache
def _serve_flags() -> tuple[Flag, ...]:
    own = [CONFIG, STRICT, *option_flags(EngineConfig), *option_flags(ServerConfig)]
    names = {flag.name for flag in own}
    return (*own, *(flag_of(entry) for entry in FOREIGN if entry.name not in names))


def flag_of(entry: ForeignOption) -> Flag:
    text = f"{entry.fate}: {entry.says}"
    return Flag(
        entry.name, entry.hint, "compatibility", text, read=_READ.get(entry.name), short=SHORT_NAMES.get(entry.name)
    )  # fmt: skip


def option_flags(options: type[Any]) -> Iterator[Flag]:
    """Yield a flag for each option of EngineConfig or ServerConfig."""
    hints = get_type_hints(options)
    for one in dataclasses.fields(options):
        about = one.metadata
        yield Flag(
            one.name,
            hints[one.name],
            about["group"],
            about["help"],
            DEFAULTS.get(one.name, one.default),
            _READ.get(one.name, about.get("read")),
            SHORT_NAMES.get(one.name),
            about.get("alias"),
            one.name in _MAY_BE_BARE,
        )


def names_of(options: type[Any]) -> frozenset[str]:
    return frozenset(one.name for one in dataclasses.fields(options))


_SECRET = ("api_key", "hf_token")


@dataclass(frozen=True)
class Settings:
    engine: EngineConfig
    server: ServerConfig
    given: dict[str, Any] = field(default_factory=dict)
    """Values of the flags that were given, secrets hidden."""
    lines: list[str] = field(default_factory=list)
    """Lines for the log that say what became of flags and variables that are no options."""
    warnings: list[str] = field(default_factory=list)


def read_settings(words: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Read a server's settings: the command line wins over the file of --config, and that over the environment.

    Raises BadUsage for a line that cannot be read, and InvalidConfig for one that cannot be done.
    """
    return make_settings(values_of_line(CommandLine.read(words, serve_flags())), environment)


def values_of_line(line: CommandLine) -> dict[str, Any]:
    """Return the values of a line, and those of the file that its --config names where the line has none."""
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


def make_settings(values: dict[str, Any], environment: Mapping[str, str]) -> Settings:
    """Make the settings of values by the flags' names. All is checked here, so that a mistake costs no loading time."""
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
