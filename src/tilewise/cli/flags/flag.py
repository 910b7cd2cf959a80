"""A flag: its names, the type of its value and what its text means, and what help says about it."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from tilewise.errors import TilewiseError, did_you_mean
from tilewise.foreign.objects import check_limits
from tilewise.units import read_amount

_WHOLE = re.compile(r"[+-]?\d+")


def value_of(flag: Flag, text: str) -> Any:
    """Return the value that a text stands for. Where None is allowed, an empty text and vLLM's `None` stand for it.

    Raises ValueError, whose text goes on behind the flag's name.
    """
    if flag.optional and text in ("", "None"):
        return None
    if flag.read is not None:
        return flag.read(text)
    if flag.is_object:
        return read_object(text)
    return _plain(flag.type, text)


def _plain(kind: Any, text: str) -> Any:
    if kind is bool:
        return read_switch(text)
    if kind is int:
        return int(text) if _WHOLE.fullmatch(text) else read_amount(text)
    if kind is float:
        return read_number(text)
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        if text not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}, got {text!r}.{did_you_mean(text, choices)}")
    return text


def read_switch(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"must be true or false, got {text!r}")
    return text.lower() == "true"


def read_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"must be a number, got {text!r}") from None


def read_object(text: str) -> dict[str, Any]:
    """Read a JSON object, or vLLM's older `image=4,video=0`. Raises ValueError."""
    if not text.lstrip().startswith("{"):
        return dict(_pair(item) for item in text.split(","))
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise ValueError(f"must be a JSON object: {error}, in {text!r}") from None
    return found


def _pair(item: str) -> tuple[str, Any]:
    name, equals, value = item.partition("=")
    if not (name.strip() and equals):
        raise ValueError(f'must be an object: JSON such as {{"name": 4}}, or name=4, got {item!r}')
    return name.strip(), loose(value)


def read_list(words: Sequence[str]) -> tuple[str, ...]:
    """Return the words behind a flag, or the items of the one JSON list that they are. Raises ValueError."""
    if len(words) != 1 or not words[0].lstrip().startswith("["):
        return tuple(words)
    try:
        found = json.loads(words[0])
    except ValueError as error:
        raise ValueError(f"must be a JSON list: {error}, in {words[0]!r}") from None
    return tuple(map(str, found))


def read_paths(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def read_limits(text: str) -> dict[str, Any]:
    """Read `limit_mm_per_prompt`: image=4, {"image": 4}, {"image": {"count": 4, "width": 448}}, or a mixture."""
    found = read_object(text)
    check_limits(found)
    return found


def read_compilation(text: str) -> dict[str, Any]:
    """Read an object, or the number of a mode alone, as in vLLM's older `-O3`."""
    return {"mode": int(text)} if text.isdecimal() else read_object(text)


def loose(text: str) -> Any:
    """Return a value inside an object: JSON where it is JSON, and otherwise the text.

    >>> loose("4"), loose("true"), loose("FULL")
    (4, True, 'FULL')
    """
    try:
        return json.loads(text)
    except ValueError:
        return text


def with_key(flag: Flag, found: Mapping[str, Any] | None, path: str, value: Any) -> dict[str, Any]:
    """Return the object with the key at `path` (`a.b`) set, or, with a + behind it, with items added to its list."""
    if not flag.is_object:
        raise ValueError(f"has no keys, so there is no {flag.dashed}.{path}.")
    *outer, last = path.rstrip("+").split(".")
    place = whole = dict(found or {})
    for key in outer:
        place[key] = dict(place[key]) if isinstance(place.get(key), Mapping) else {}
        place = place[key]
    before = place.get(last)
    more = path.endswith("+")
    place[last] = [*(before if isinstance(before, list) else []), *value] if more else value
    return whole


def value_from_file(flag: Flag, value: Any) -> Any:
    """Return the flag's value for one that YAML has read, which has a type already. Raises ValueError."""
    if isinstance(value, str) and not flag.is_list:
        return value_of(flag, value)
    if flag.is_list:
        return read_list([str(item) for item in value] if isinstance(value, list) else [str(value)])
    if value is None and flag.optional:
        return None
    if flag.read is not None and flag.is_object and type(value) is int:
        return flag.read(str(value))
    if flag.is_object and not isinstance(value, Mapping):
        raise ValueError(f"must be a mapping, got {value!r}")
    return value_of(flag, ",".join(map(str, value)) if isinstance(value, list) else json.dumps(value))


Read = Callable[[str], Any]


class BadUsage(TilewiseError, ValueError):
    """A command line that cannot be read."""


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag, as it is written on a line or in a file, and the option that it sets.

    `hint` is the annotated type of the option. `read` makes a value of a text where the type alone does not say how.
    """

    name: str
    hint: Any
    group: str
    help: str
    default: Any = None
    read: Read | None = None
    short: str | None = None
    alias: str | None = None
    may_be_bare: bool = False
    """True if it may be given without a value, which then is the default."""

    @property
    def dashed(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def other(self) -> str | None:
        """The alias as it is written on a line, or None."""
        return "--" + self.alias.replace("_", "-") if self.alias else None

    @property
    def type(self) -> Any:
        """The type of the value where it is not None."""
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
