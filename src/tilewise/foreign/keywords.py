"""Keywords of vLLM's Python calls that are no options here, and what becomes of each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from tilewise.errors import InvalidField, UnknownOption
from tilewise.ignored import Ignored
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
        if value is None or any(type(value) is type(default) and value == default for default in self.defaults):
            return
        if self.refused:
            raise InvalidField(name, f"{name}={value!r:.80} is not possible: {self.why}")
        ignored.add(name, self.why)


def refused(why: str, *defaults: Any) -> ForeignKeyword:
    return ForeignKeyword(True, why, defaults)


def no_effect(why: str, *defaults: Any) -> ForeignKeyword:
    return ForeignKeyword(False, why, defaults)


def take_all(keywords: Mapping[str, Any], known: Mapping[str, ForeignKeyword], ignored: Ignored) -> None:
    """Take each of the keywords by its entry in `known`. Raises InvalidField for the first that is refused."""
    for name, value in keywords.items():
        known[name].take(name, value, ignored)


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
