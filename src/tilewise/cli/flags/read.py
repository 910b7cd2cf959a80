"""What the text behind a flag means, or a value of a YAML file. Errors are ValueErrors that say what it must be."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from tilewise.amounts import read_amount
from tilewise.cli.flags.flag import Flag
from tilewise.errors import did_you_mean
from tilewise.foreign.translate import check_limits

_WHOLE = re.compile(r"[+-]?\d+")


def value_of(flag: Flag, text: str) -> Any:
    """The value that a text stands for; an empty text, and vLLM's `None`, are that of an option not given."""
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
    """A JSON object, or vLLM's older `image=4,video=0`."""
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
        raise ValueError(f'must be JSON such as {{"image": 4}}, or image=4, got {item!r}')
    return name.strip(), loose(value)


def read_list(words: Sequence[str]) -> tuple[str, ...]:
    """The words behind a flag, or the one JSON list that they are."""
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
    """`limit_mm_per_prompt` in its forms: image=4, {"image": 4}, {"image": {"count": 4, "width": 448}}, and mixed."""
    found = read_object(text)
    check_limits(found)
    return found


def read_compilation(text: str) -> dict[str, Any]:
    """An object, or the number of a mode, as vLLM's older `-O3` is."""
    return {"mode": int(text)} if text.isdecimal() else read_object(text)


def loose(text: str) -> Any:
    """A value inside an object: JSON where it is JSON, and otherwise the text.

    >>> loose("4"), loose("true"), loose("FULL")
    (4, True, 'FULL')
    """
    try:
        return json.loads(text)
    except ValueError:
        return text


def with_key(flag: Flag, found: Mapping[str, Any] | None, path: str, value: Any) -> dict[str, Any]:
    """An object with one key set, or with a + behind the path added to the list that it holds."""
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
    """A value that YAML has given a type already."""
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
