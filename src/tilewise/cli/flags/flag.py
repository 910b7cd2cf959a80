"""A flag: its names, the type of its value, and what help says about it."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin

from tilewise.errors import TilewiseError

Read = Callable[[str], Any]


class BadUsage(TilewiseError, ValueError):
    """A command line that cannot be read."""


@dataclass(frozen=True, slots=True)
class Flag:
    """`read` makes a value of a text where the type alone does not say how."""

    name: str
    hint: Any
    group: str
    help: str
    default: Any = None
    read: Read | None = None
    short: str | None = None
    alias: str | None = None
    may_be_bare: bool = False
    """Given without a value it asks for what is so without it."""

    @property
    def dashed(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def other(self) -> str | None:
        """Its alias, as it is written on a line."""
        return "--" + self.alias.replace("_", "-") if self.alias else None

    @property
    def type(self) -> Any:
        """The type of its value where it has one."""
        if get_origin(self.hint) in (Union, types.UnionType):
            return next(part for part in get_args(self.hint) if part is not type(None))
        return self.hint

    @property
    def optional(self) -> bool:
        return type(None) in get_args(self.hint)

    @property
    def is_switch(self) -> bool:
        return self.type is bool

    @property
    def is_list(self) -> bool:
        return get_origin(self.type) is tuple and self.read is None

    @property
    def is_object(self) -> bool:
        return get_origin(self.type) is dict
