"""Every flag of `tilewise serve`: the options of engine and server, by their fields, and vLLM's that are none."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cache
from typing import Any, get_type_hints

from tilewise.cli.flags.flag import Flag, Read
from tilewise.cli.flags.read import read_compilation, read_limits, read_paths
from tilewise.config import EngineConfig
from tilewise.foreign.engine import ENGINE
from tilewise.foreign.entry import SHORT, Foreign
from tilewise.foreign.server import SERVER
from tilewise.server.config import ServerConfig

_READ: dict[str, Read] = {
    "limit_mm_per_prompt": read_limits,
    "disable_access_log_for_endpoints": read_paths,
    "compilation_config": read_compilation,
}
FOREIGN: tuple[Foreign, ...] = (*ENGINE, *SERVER)
_MAY_BE_BARE = ("hf_token",)
DEFAULTS = {"disable_log_stats": False}
"""Where a server's default is not that of an engine in a program."""

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


def flag_of(entry: Foreign) -> Flag:
    text = f"{entry.fate}: {entry.says}"
    return Flag(
        entry.name, entry.hint, "compatibility", text, read=_READ.get(entry.name), short=SHORT.get(entry.name)
    )  # fmt: skip


def option_flags(options: type[Any]) -> Iterator[Flag]:
    """A flag for each field."""
    hints = get_type_hints(options)
    for field in dataclasses.fields(options):
        about = field.metadata
        yield Flag(
            field.name,
            hints[field.name],
            about["group"],
            about["help"],
            DEFAULTS.get(field.name, field.default),
            _READ.get(field.name, about.get("read")),
            SHORT.get(field.name),
            about.get("alias"),
            field.name in _MAY_BE_BARE,
        )


def names_of(options: type[Any]) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(options))
