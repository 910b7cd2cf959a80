"""The flags of the engine and of `tilewise serve`, and the settings that a command line comes to."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from tilewise.cli.flags.flag import BadUsage, Flag, dashes, flags_of, names_of, reader_of
from tilewise.cli.flags.parse import CommandLine, read_yaml, values_of
from tilewise.config import EngineConfig, options_of
from tilewise.console import set_up_logs
from tilewise.environment import READ, Environment
from tilewise.errors import InvalidConfig
from tilewise.foreign.table import PROGRAM, SERVER
from tilewise.foreign.translate import SHORT_NAMES, ForeignOption, translate
from tilewise.ignored import LOG
from tilewise.server.config import ServerConfig

logger = logging.getLogger("tilewise")

FOREIGN = SERVER
DEFAULTS = {"disable_log_stats": False}
"""Defaults of a server that are not those of an engine in a program."""
CONFIG = Flag("config", str | None, "this command", "YAML file of flags by their names; the command line wins over it")
STRICT = Flag(
    *("fail_on_environ_validation", bool, "this command"),
    "refuse to start when an environment variable is VLLM_... and unknown",
    False,
)
OWN_NAMES = frozenset((CONFIG.name, STRICT.name))


@cache
def serve_flags() -> tuple[Flag, ...]:
    own = [CONFIG, STRICT, *flags_of(EngineConfig, DEFAULTS), *flags_of(ServerConfig)]
    names = {flag.name for flag in own}
    return (*own, *(flag_of(entry) for entry in FOREIGN if entry.name not in names))


def engine_flags(only: Collection[str] | None = None) -> tuple[Flag, ...]:
    """Return a flag for every option of the engine and for vLLM's engine flags that change nothing.

    With `only`, those of these options; the others are not suggested, as they would do nothing.
    """
    options = [flag for flag in flags_of(EngineConfig) if only is None or flag.name in only]
    known = names_of(EngineConfig)
    foreign = [flag_of(entry) for entry in PROGRAM if entry.name not in known]
    return (*options, *(foreign if only is None else (replace(flag, group="") for flag in foreign)))


def engine_options(line: CommandLine) -> dict[str, Any]:
    """Return the engine's options, which are what is left of a line, and log what has no effect.

    Raises InvalidConfig for an option that is not possible.
    """
    found = translate(line.values, names_of(EngineConfig), PROGRAM)
    LOG.take({dashes(name): why for name, why in found.ignored.reasons.items()}, "command line")
    for text in (*found.lines, *found.warnings):
        logger.warning("command line: %s", text)
    return found.options


def flag_of(entry: ForeignOption) -> Flag:
    text, short = f"{entry.fate}: {entry.says}", SHORT_NAMES.get(entry.name)
    return Flag(entry.name, entry.hint, "compatibility", text, read=reader_of(entry.name), short=short)


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

    @property
    def name(self) -> str:
        """The model's name, in letters that a file's name may have."""
        name = next(iter(self.server.served_model_name), self.engine.model.rstrip("/"))
        return re.sub(r"[^A-Za-z0-9._-]+", "-", name.rpartition("/")[2]).lstrip("._-")[:64] or "model"

    def log(self, process: str) -> None:
        """Set up the log of a process of this name, and write into it what was given and what became of it."""
        set_up_logs(process, Environment.here().logging_level)
        logger.info("non-default args: %s", self.given)
        for line in self.lines:
            logger.info("%s", line)
        for line in self.warnings:
            logger.warning("%s", line)


def values_of_line(line: CommandLine) -> dict[str, Any]:
    """Return the values of a line, and those of the file that its --config names where the line has none."""
    file = line.values.get("config")
    return (values_of(read_yaml(file), serve_flags(), file) if file else {}) | _with_model(line)


def _of_variables(environment: Environment) -> dict[str, Any]:
    """Return the values of flags that variables set."""
    flags = {flag.name: flag for flag in serve_flags()}
    values = options_of(environment)
    for variable in READ:
        if variable.option is not None and (text := variable.value(environment.variables)):
            flag = flags[variable.option]
            values |= CommandLine.read([f"{flag.dashed}={text}"], [flag]).values
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
    """Make the settings of values by the flags' names, which win over those of the environment.

    All is checked here, so that a mistake costs no loading time. Raises InvalidConfig for what cannot be done.
    """
    read = Environment(environment)
    values = _of_variables(read) | values
    if values.get("fail_on_environ_validation") and (unknown := read.unknown()):
        raise InvalidConfig(f"{' '.join(unknown)} Unset it, or leave out --fail-on-environ-validation.")
    of_engine, of_server = names_of(EngineConfig), names_of(ServerConfig)
    found = translate(values, of_engine | of_server | OWN_NAMES, FOREIGN)
    wanted = DEFAULTS | found.options
    if wanted.get("max_log_len") is not None and not wanted.get("enable_log_requests"):
        found.ignored.add("max_log_len", "requests are not logged without --enable-log-requests")
        del wanted["max_log_len"]
    engine = EngineConfig(**{name: value for name, value in wanted.items() if name in of_engine})
    server = ServerConfig(**{name: value for name, value in wanted.items() if name in of_server})
    given = {name: "***" if name in _SECRET else value for name, value in values.items()}
    named = [f"{dashes(name)}: {why}" for name, why in found.ignored.reasons.items()]
    lines = named + found.lines + read.explained()
    return Settings(engine, server, given, lines, found.warnings + read.unknown())
