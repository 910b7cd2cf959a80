"""Options of configurations and requests: how one is declared, and how its value is checked.

A value of a configuration is of the type that its field has, or it is refused: True is no number and "false" no
switch. numpy's scalars are the numbers that they hold, and a list is taken for a tuple. A field of a request has a
`Rule` of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import types
from collections.abc import Callable
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tilewise.errors import InvalidConfig, InvalidField, did_you_mean
from tilewise.units import to_python

MANY = 2**31 - 1
"""Upper limit of a number that has none of its own, where a library or a device counts in 32 bits."""


def option(
    default: Any,
    text: str,
    group: str = "",
    read: Callable[[str], Any] | None = None,
    alias: str | None = None,
    *,
    shown: bool = True,
    short: str | None = None,
    metavar: str | None = None,
    bare: Any = ...,
    repeated: bool = False,
) -> Any:
    """Declare an option, as a field of a dataclass.

    `read` makes a value of a text, from the command line or from Python; `alias` is another name for the option. An
    option that is not `shown` holds a secret: it is in no repr. The others are about its flag: its `short` name, the
    word for its value in the help, the value that it has `bare` of a word (... = it needs one), and whether each time
    adds one.
    """
    about = {"short": short, "metavar": metavar, "bare": bare, "repeated": repeated}
    metadata = {"help": text, "group": group, "read": read, "alias": alias, **about}
    return dataclasses.field(default=default, repr=shown, metadata=metadata)


def word(help: str, metavar: str, default: Any = dataclasses.MISSING) -> Any:
    """Declare an argument that is no flag, as a field of a dataclass; one whose default is a tuple takes several."""
    return dataclasses.field(default=default, metadata={"word": metavar, "help": help})


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule for the value of a field."""

    wanted: str
    """Words for what it must be."""
    holds: Callable[[Any], Any]
    """A function that says whether it is that; a TypeError or ValueError, of `prepare` too, says that it is not."""
    prepare: Callable[[Any], Any] = to_python
    """A function that makes of a given value the one that is checked and kept."""
    most: int | None = None
    """Most entries of a list."""
    optional: bool = False
    """True if None is allowed."""

    def kept(self, name: str, value: Any) -> Any:
        """Return the value as it is kept. Raises InvalidField."""
        try:
            value = self.prepare(value)
            fine = self.holds(value) if value is not None else self.optional
        except (TypeError, ValueError):
            fine = False
        if not fine:
            most = f", at most {MANY}" if isinstance(value, int) and value > MANY else ""
            raise InvalidField(name, f"{name} must be {self.wanted}{most}, got {value!r:.200}.")
        if self.most is not None and len(value or ()) > self.most:
            raise InvalidField(name, f"{name} may have at most {self.most} entries, got {len(value)}: send fewer.")
        return value


def checked(default: Any, wanted: str, holds: Callable[[Any], Any], **more: Any) -> Any:
    """Return a field whose values are checked by a Rule; None is allowed if it is the default."""
    rule = Rule(wanted, holds, **{"optional": default is None, **more})
    return dataclasses.field(default=default, metadata={"rule": rule})


def texts(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(text, str) and text for text in value)


def switch(default: bool | None = False) -> Any:
    return checked(default, "true or false", lambda value: isinstance(value, bool))


def check_types(config: Any) -> None:
    """Give each field of a dataclass the value that its type asks for. Raises InvalidConfig that names the field."""
    hints = _hints_of(config.__class__)
    for field in dataclasses.fields(config):
        value = _read(field.name, getattr(config, field.name), field.metadata.get("read"))
        object.__setattr__(config, field.name, checked_value(field.name, value, hints[field.name]))


def checked_value(name: str, value: Any, hint: Any) -> Any:
    """Return the value in the form that its type asks for. Raises InvalidConfig that says what it must be."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    value = _plain(value, kinds)
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if choices and isinstance(value, str) and value not in choices:
        raise InvalidConfig(f"{name} must be one of {', '.join(choices)}, got {value!r}.{did_you_mean(value, choices)}")
    if not any(_is(value, kind) for kind in kinds):
        wanted = " or ".join(_word(kind) for kind in kinds)
        raise InvalidConfig(f"{name} must be {wanted}, got {value!r:.200}.")
    return value


def check_range(
    name: str, value: float | None, least: float, most: float = math.inf, *, above: bool = False, least_is: str = ""
) -> None:
    """Raise InvalidConfig for a number outside. `above`: `least` is too little; `least_is` says what it means."""
    fits = value is None or (value > least if above else value >= least)
    if value is None or (fits and value <= most and value != math.inf):
        return
    if value == math.inf:
        raise InvalidConfig(f"{name} must be finite, got {value!r}.")
    low = f"{least:g} ({least_is})" if least_is else f"{least:g}"
    if most == math.inf or (most == MANY and not value > most):
        raise InvalidConfig(f"{name} must be {f'above {low}' if above else f'{low} or above'}, got {value!r}.")
    limits = f"above {low} and at most {most:g}" if above else f"from {low} to {most:.10g}"
    raise InvalidConfig(f"{name} must be {limits}, got {value!r}.")


def whole(value: Any) -> int | None:
    """Return the whole number that a value is, numpy's among them; None for anything else, True and False too."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


def _read(name: str, value: Any, read: Callable[[str], int] | None) -> Any:
    """Return the number for a text in place of one, if the option can `read` it; any other value as it is."""
    if read is None or not isinstance(value, str):
        return value
    try:
        return read(value)
    except ValueError as error:
        raise InvalidConfig(f"{name} {error}.") from None


def _plain(value: Any, kinds: tuple[Any, ...]) -> Any:
    """Return Python's own number for a scalar of numpy, and a tuple for a list where a tuple is asked for."""
    if isinstance(value, list) and any(get_origin(kind) is tuple for kind in kinds):
        return tuple(value)
    if type(value) in (bool, int, float, str) or value is None:
        return value
    if getattr(getattr(value, "dtype", None), "kind", "") == "b" and getattr(value, "ndim", 1) == 0:
        return bool(value)
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def _is(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if kind is Any:
        return True
    if origin is Literal:
        return isinstance(value, str)
    if kind is float:
        return type(value) in (int, float)
    if origin is tuple:
        return type(value) is tuple and all(type(item) is str for item in value)
    if kind is str or origin is dict:
        return isinstance(value, origin or kind)
    return type(value) is (origin or kind)


def _word(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    return _WORDS.get(get_origin(kind) or kind, str(kind))


_hints_of = cache(get_type_hints)
_WORDS: dict[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a tuple of texts",
    dict: "a dict",
    type(None): "None",
}


def not_none(hint: Any) -> Any:
    """Return the first type that a hint allows beside None."""
    if get_origin(hint) in (Union, types.UnionType):
        return next(part for part in get_args(hint) if part is not type(None))
    return hint


def dashed(argument: str) -> str:
    """Spell a flag with dashes, as vLLM's parser reads it; return anything but a flag as it is.

    >>> dashed("--max_model_len=a_b")
    '--max-model-len=a_b'
    """
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    flag, dot, key = name.partition(".")
    return flag.replace("_", "-") + dot + key + equals + value


def argument_of(hint: Any, read: Callable[[str], int] | None) -> dict[str, Any]:
    """Return argparse's keywords for a field's type, or for a number that `read` makes of a text."""
    if read is not None:
        return {"type": _typed(read), "metavar": "N"}
    hint = not_none(hint)
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    if get_origin(hint) is dict:
        return {"type": _typed(read_object), "metavar": "JSON"}
    if get_origin(hint) is tuple:
        return {"nargs": "+", "type": get_args(hint)[0]}
    return {"type": hint, "metavar": {int: "N", float: "X"}.get(hint, "TEXT")}


def _typed(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def read_object(text: str) -> dict[str, Any]:
    """Read a JSON object, or vLLM's older `image=4,video=0`. Raises ValueError."""
    if not text.lstrip().startswith("{"):
        return dict(_pair(item) for item in text.split(","))
    try:
        found: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"must be a JSON object: {error}, in {text!r:.200}") from None
    return found


def _pair(item: str) -> tuple[str, Any]:
    name, equals, value = item.partition("=")
    if not (name.strip() and equals):
        raise ValueError(f'must be an object: JSON such as {{"name": 4}}, or name=4, got {item!r}')
    return name.strip(), loose(value)


def loose(text: str) -> Any:
    """Return a value inside an object: JSON where it is JSON, and otherwise the text.

    >>> loose("4"), loose("true"), loose("FULL")
    (4, True, 'FULL')
    """
    try:
        return json.loads(text)
    except ValueError:
        return text
