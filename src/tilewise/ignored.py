"""Names that were asked for and have no effect. None is dropped in silence: each is logged once, with the reason.

The rule of every surface (flags, environment, request fields, keywords of Python): what changes an answer works or is
refused by name; what does not change one is taken, and named. A near miss of a known name is always refused, since
whoever wrote `max_tokns` meant something.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tilewise.errors import nearest

logger = logging.getLogger("tilewise")
_MOST_LOGGED = 1000
"""Names that a process remembers as logged; clients may invent more, and memory must not grow with them."""


@dataclass
class Ignored:
    """The names that one request, call or command line brought without effect, each with the reason."""

    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, why: str) -> None:
        self.reasons.setdefault(name[:80], why)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.reasons)

    def __bool__(self) -> bool:
        return bool(self.reasons)


def asks_nothing(value: Any, harmless: Iterable[Any] = ()) -> bool:
    """Return whether a value asks for nothing: None, or one of the harmless ones.

    A number is the same one however it is written, but True is no 1, and an array, whose equality is no bool, is none.

    >>> [asks_nothing(value, [1]) for value in (None, 1, 1.0, True)]
    [True, True, True, False]
    """
    try:
        return value is None or any(
            value == same and isinstance(value, bool) is isinstance(same, bool) for same in harmless
        )
    except ValueError:
        return False


def is_near_miss(name: str, known: Iterable[str]) -> bool:
    """Return whether an unknown name is so close to a known one that it was meant.

    >>> is_near_miss("max_tokns", ["max_tokens", "seed"]), is_near_miss("chat_id", ["max_tokens", "seed"])
    (True, False)
    """
    return other_spelling(name, known) is not None or nearest(name, known, cutoff=0.8) is not None


def other_spelling(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that differs in nothing but capitals, hyphens and underscores, or None.

    >>> other_spelling("topP", ["top_k", "top_p"])
    'top_p'
    """
    letters = _letters(name)
    return next((one for one in known if one != name and _letters(one) == letters), None)


def _letters(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


class IgnoredLog:
    """A log of ignored names: each is logged the first time that it comes."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def take(self, reasons: Mapping[str, str], where: str) -> None:
        """Log the names that are new, as `where: name has no effect: why`."""
        for name, why in reasons.items():
            if name not in self._logged and len(self._logged) < _MOST_LOGGED:
                self._logged.add(name)
                logger.warning("%s: %s has no effect: %s", where, name, why)


LOG = IgnoredLog()
"""The process's log, for calls from Python; a server has one of its own."""
