"""Keywords of vLLM's Python calls that are no options here, and what becomes of each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from tilewise.errors import InvalidField, UnknownOption
from tilewise.ignored import Ignored, asks_nothing
from tilewise.units import to_python

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ForeignKeyword:
    """A keyword that is no option here.

    None and `defaults` ask for nothing; any other value is refused, or has no effect and is named.
    """

    refused: bool
    why: str
    """A sentence with the remedy if it is refused, else the reason in lower case."""
    defaults: tuple[Any, ...] = ()

    def take(self, name: str, value: Any, ignored: Ignored) -> None:
        """Take a value: add the keyword to `ignored` if it asks for something. Raises InvalidField if it is refused."""
        value = to_python(value)
        if asks_nothing(value, self.defaults):
            return
        if self.refused:
            raise InvalidField(name, f"{name}={value!r:.80} is not possible: {self.why}")
        ignored.add(name, self.why)


def refused(why: str, *defaults: Any) -> ForeignKeyword:
    return ForeignKeyword(True, why, defaults)


def no_effect(why: str, *defaults: Any) -> ForeignKeyword:
    return ForeignKeyword(False, why, defaults)


def take_all(
    given: Mapping[str, Any],
    foreign: Mapping[str, ForeignKeyword],
    ignored: Ignored,
    known: Collection[str] = (),
    where: str = "The call",
) -> None:
    """Take each keyword by its entry in `foreign`, and leave those that are `known` to the caller.

    Raises InvalidField for the first that is refused, UnknownOption for one that is neither, named as one of `where`.
    """
    for name, value in given.items():
        if name in foreign:
            foreign[name].take(name, value, ignored)
        elif name not in known:
            raise UnknownOption.named(str(name), known or foreign, where)


def named_keywords(
    foreign: Iterable[str] = (),
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Decorate a function: an unknown keyword raises UnknownOption with the nearest that it has, or of `foreign`."""

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        known = {*foreign, *inspect.signature(function).parameters} - {"self"}

        @wraps(function)
        def checked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            for name in kwargs:
                if name not in known:
                    raise UnknownOption.named(name, known, function.__name__)
            return function(*args, **kwargs)

        return checked

    return decorate
