"""Keywords of vLLM's Python calls that are no options here, and what becomes of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tilewise.amounts import plain
from tilewise.errors import InvalidField
from tilewise.ignored import Ignored


@dataclass(frozen=True, slots=True)
class ForeignKeyword:
    """None and `defaults` ask for nothing; any other value is refused, or has no effect and is named."""

    refused: bool
    why: str
    """A sentence with the remedy if it is refused, else the reason in lower case."""
    defaults: tuple[Any, ...] = ()

    def take(self, name: str, value: Any, ignored: Ignored) -> None:
        """Raises InvalidField, naming the keyword."""
        value = plain(value)
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
    """Hold keywords against their fates. Raises InvalidField for the first that is refused."""
    for name, value in keywords.items():
        known[name].take(name, value, ignored)
