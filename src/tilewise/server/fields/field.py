"""One field of a request body, and a table of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tilewise.errors import InvalidField
from tilewise.server.fields.unknown import UnknownFields

Effect = Literal["works", "refused", "no effect"]


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    effect: Effect
    note: str
    """What it does; or why it cannot, and what to do instead; or why it changes nothing."""
    harmless: tuple[Any, ...] = ()
    """Values that ask for nothing: a refused field is taken with them, one without effect is not named. None always is
    one."""

    def asks_nothing(self, value: Any) -> bool:
        """A number is the same one however it is written, but true is not one."""
        return any(value == same and isinstance(value, bool) == isinstance(same, bool) for same in self.harmless)


def works(name: str, note: str) -> Field:
    return Field(name, "works", note)


def refused(name: str, note: str, *harmless: Any) -> Field:
    return Field(name, "refused", note, harmless)


def inert(name: str, note: str, *harmless: Any) -> Field:
    return Field(name, "no effect", note, harmless)


@dataclass(frozen=True)
class FieldTable:
    """The fields of one route's body."""

    route: str
    fields: tuple[Field, ...]

    @property
    def names(self) -> list[str]:
        return [field.name for field in self.fields]

    @property
    def working(self) -> set[str]:
        return {field.name for field in self.fields if field.effect == "works"}

    def effective(self, body: Mapping[str, Any], unknown: UnknownFields) -> dict[str, Any]:
        """The fields of a body that mean something; what has no effect is named in `unknown.ignored`.

        A null is a field that is not there, as OpenAI's clients mean it. Raises InvalidField, naming the first that
        cannot be had.
        """
        known = {field.name: field for field in self.fields}
        kept: dict[str, Any] = {}
        for name, value in body.items():
            if name not in known:
                if value is not None or unknown.strict:
                    unknown.take(name, known, self.route)
            elif value is None:
                continue
            elif known[name].effect == "works":
                kept[name] = value
            elif known[name].asks_nothing(value):
                continue
            elif known[name].effect == "refused":
                raise InvalidField(name, f"{name} is not supported: {known[name].note}")
            else:
                unknown.ignored.add(name, known[name].note)
        return kept
