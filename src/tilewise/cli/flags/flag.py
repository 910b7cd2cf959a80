"""A flag: its names, the type of its value and what its text means. Options of a dataclass are flags."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tilewise.errors import TilewiseError, did_you_mean
from tilewise.foreign.objects import check_limits
from tilewise.foreign.translate import SHORT_NAMES
from tilewise.option import not_none, read_object
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
    if kind is Path:
        return Path(text)
    return read_choice(get_args(kind), text) if get_origin(kind) is Literal else text


def read_choice(choices: Sequence[str], text: str) -> str:
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


def values_of_list(flag: Flag, words: Sequence[str]) -> tuple[Any, ...]:
    """Return the values of the words behind a flag, or the items of the one JSON list that they are.

    Raises ValueError.
    """
    if len(words) == 1 and words[0].lstrip().startswith("["):
        try:
            words = list(map(str, json.loads(words[0])))
        except ValueError as error:
            raise ValueError(f"must be a JSON list: {error}, in {words[0]!r}") from None
    return tuple(_plain(get_args(flag.type)[0], word) for word in words)


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


def read_strength(text: str) -> float:
    """Read a strength of smoothing, behind whose flag a word that was meant as MODEL or OUT may stand."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is no strength from 0 to 1: name MODEL and OUT in front, or give one, --smooth=0.5"
        ) from None


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
    """Return the flag's value for one that YAML has read, which has a type already. Raises ValueError.

    A line without a value is not given where None is the default, and refused elsewhere: a template that nobody filled
    in must not make a key of the word None, nor a server without one.
    """
    if value is None and flag.optional and not flag.is_list:
        return None
    items = value if isinstance(value, list) else [value]
    if not items or any(item is None for item in items):
        raise ValueError("has no value: give one, or leave the line out")
    if isinstance(value, str) and not flag.is_list:
        return value_of(flag, value)
    if flag.is_list:
        return values_of_list(flag, list(map(str, items)))
    if flag.read is not None and flag.is_object and type(value) is int:
        return flag.read(str(value))
    if flag.is_object and not isinstance(value, Mapping):
        raise ValueError(f"must be a mapping, got {value!r}")
    return value_of(flag, ",".join(map(str, value)) if isinstance(value, list) else json.dumps(value))


Read = Callable[[str], Any]
NEEDED = ...
"""Value of `bare` for a flag that needs a word behind it."""


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
    """Heading of the help under which it stands; empty = it is taken, and neither shown nor suggested."""
    help: str
    default: Any = None
    read: Read | None = None
    short: str | None = None
    alias: str | None = None
    bare: Any = NEEDED
    """The value without a word behind the flag."""
    repeated: bool = False
    """True if each time that it is given adds a value."""
    metavar: str | None = None

    @property
    def dashed(self) -> str:
        return dashes(self.name)

    @property
    def other(self) -> str | None:
        """The alias as it is written on a line, or None."""
        return dashes(self.alias) if self.alias else None

    @property
    def type(self) -> Any:
        """The type of the value where it is not None."""
        return not_none(self.hint)

    @property
    def optional(self) -> bool:
        return type(None) in get_args(self.hint)

    @property
    def is_switch(self) -> bool:
        return self.type is bool

    @property
    def is_list(self) -> bool:
        return get_origin(self.type) is tuple and self.read is None and not self.repeated

    @property
    def is_object(self) -> bool:
        return get_origin(self.type) is dict


def dashes(name: str) -> str:
    """Return an option's name as a flag."""
    return "--" + name.replace("_", "-")


_READ: dict[str, Read] = {
    "limit_mm_per_prompt": read_limits,
    "disable_access_log_for_endpoints": read_paths,
    "compilation_config": read_compilation,
    "smooth": read_strength,
}
_BARE = {"hf_token": None}


def reader_of(name: str) -> Read | None:
    """Return what reads the text of an option that a program gives as an object, a tuple or a number."""
    return _READ.get(name)


def words_of(options: type[Any]) -> list[dataclasses.Field[Any]]:
    """Return the arguments of a verb that are no flags."""
    return [field for field in dataclasses.fields(options) if "word" in field.metadata]


def flags_of(options: type[Any], defaults: Mapping[str, Any] | None = None) -> Iterator[Flag]:
    """Yield a flag for each option of a dataclass; `defaults` are other ones than its own.

    A verb's own options are in its GROUP unless they say another. Where they are None they were not given, and no text
    stands for that: an empty one is one.
    """
    hints, own = get_type_hints(options), hasattr(options, "GROUP")
    for field in dataclasses.fields(options):
        name, about = field.name, field.metadata
        if "word" not in about:
            yield Flag(
                name,
                not_none(hints[name]) if own else hints[name],
                about["group"] or options.GROUP,
                about["help"],
                (defaults or {}).get(name, field.default),
                reader_of(name) or about["read"],
                about["short"] or SHORT_NAMES.get(name),
                about["alias"],
                _BARE.get(name, about["bare"]),
                about["repeated"],
                about["metavar"],
            )


def names_of(options: type[Any]) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(options))
