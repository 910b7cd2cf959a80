"""Every flag of `tilewise serve`: the options of engine and server, by their fields, and vLLM's that are none."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, get_type_hints

from tilewise.cli.flags.flag import Flag, Read
from tilewise.cli.flags.foreign import FOREIGN
from tilewise.cli.flags.read import read_limits, read_paths
from tilewise.config import EngineConfig
from tilewise.server.config import ServerConfig

_READ: dict[str, Read] = {
    "limit_mm_per_prompt": read_limits,
    "disable_access_log_for_endpoints": read_paths,
}
DEFAULTS = {"disable_log_stats": False}
"""Where a server's default is not that of an engine in a program."""

CONFIG = Flag("config", str | None, "this command", "YAML file of flags by their names; the command line wins over it")
STRICT = Flag(
    *("fail_on_environ_validation", bool, "this command"),
    "refuse to start when an environment variable is VLLM_... and unknown",
    False,
)


def serve_flags() -> list[Flag]:
    own = [CONFIG, STRICT, *option_flags(EngineConfig), *option_flags(ServerConfig)]
    names = {flag.name for flag in own}
    return own + [entry.flag for entry in FOREIGN if entry.name not in names]


def option_flags(options: type[Any]) -> Iterator[Flag]:
    """A flag for each field."""
    hints, short = get_type_hints(options), {entry.name: entry.short for entry in FOREIGN}
    for field in dataclasses.fields(options):
        about = field.metadata
        yield Flag(
            field.name,
            hints[field.name],
            about["group"],
            about["help"],
            DEFAULTS.get(field.name, field.default),
            _READ.get(field.name, about.get("read")),
            short.get(field.name),
            about.get("alias"),
        )


def names_of(options: type[Any]) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(options))
