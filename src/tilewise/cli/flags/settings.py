"""From a command line to what engine and server are asked for, and what has to be said about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tilewise.cli.flags.file import flags_of_file
from tilewise.cli.flags.flag import BadUsage
from tilewise.cli.flags.foreign import check_foreign
from tilewise.cli.flags.graphs import asks_for_eager, check_compilation, explain_additional
from tilewise.cli.flags.parse import CommandLine
from tilewise.cli.flags.read import counts_of
from tilewise.cli.flags.table import DEFAULTS, names_of, serve_flags
from tilewise.cli.flags.variables import OPTIONS, explain_variables, refuse_unknown, unknown_variables
from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig, did_you_mean
from tilewise.server.config import ServerConfig

_SECRET = ("api_key",)
_BACKENDS = ("auto", "xgrammar", "guidance", "outlines", "lm-format-enforcer")
_VIDEO_KEYS = ("num_frames", "fps")


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
    lines = check_foreign(values)
    _check_structured(values.get("structured_outputs_config") or {})
    frames, about_frames = _media_io(values.get("media_io_kwargs") or {})
    if values.get("limit_mm_per_prompt"):
        values["limit_mm_per_prompt"], about_limits = counts_of(values["limit_mm_per_prompt"])
        lines += about_limits
    compilation = values.get("compilation_config") or {}
    eager = {"enforce_eager": True} if asks_for_eager(compilation, values.get("optimization_level")) else {}
    wanted = DEFAULTS | frames | eager | values
    engine = EngineConfig.of(**{name: value for name, value in wanted.items() if name in names_of(EngineConfig)})
    server = ServerConfig.of(**{name: value for name, value in wanted.items() if name in names_of(ServerConfig)})
    lines += about_frames + check_compilation(compilation, engine.max_num_seqs)
    known, unknown = explain_additional(values.get("additional_config") or {})
    given = {name: "***" if name in _SECRET else value for name, value in values.items()}
    lines += known + explain_variables(environment)
    return Settings(engine, server, given, lines, unknown + unknown_variables(environment))


def _media_io(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """`media_io_kwargs` as far as there is an option for it."""
    for kind, options in kwargs.items():
        keys = _VIDEO_KEYS if kind == "video" else ()
        for key in options:
            if key not in keys:
                raise InvalidConfig(
                    f"media_io_kwargs: {kind} has no {key!r} here; num_frames and fps of video are all that can be set."
                    f"{did_you_mean(key, keys)}"
                )
    video = dict(kwargs.get("video") or {})
    return video, [f"media_io_kwargs: became --{key.replace('_', '-')} {value}." for key, value in video.items()]


def _check_structured(config: Mapping[str, Any]) -> None:
    """`structured_outputs_config`: which backend is not a question here, and the rest belongs to requests."""
    backend = config.get("backend", "auto")
    if backend not in _BACKENDS:
        hint = did_you_mean(str(backend), _BACKENDS)
        raise InvalidConfig(
            f"structured_outputs_config: backend must be one of {', '.join(_BACKENDS)}, got {backend!r}.{hint}"
        )
    for key in config:
        if key != "backend":
            raise InvalidConfig(
                f"structured_outputs_config: {key} cannot be set for all requests: put it into structured_outputs of a "
                f"request.{did_you_mean(key, ('backend',))}"
            )
