"""One field of a request body, a table of them, and names that no table has."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel

from tilewise.errors import InvalidField, did_you_mean
from tilewise.ignored import Ignored, is_near_miss, other_spelling

Effect = Literal["works", "refused", "no effect"]


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    effect: Effect
    note: str
    """Sentence on what the field does; or why it is refused, and what to do instead; or why it changes nothing."""
    harmless: tuple[Any, ...] = ()
    """Values that ask for nothing: a refused field is taken with them, one without effect is not named. None always is
    one."""

    def asks_nothing(self, value: Any) -> bool:
        """True if `value` is harmless. A number is the same one however it is written, but true is not one."""
        return any(value == same and isinstance(value, bool) == isinstance(same, bool) for same in self.harmless)


def refused(name: str, note: str, *harmless: Any) -> Field:
    return Field(name, "refused", note, harmless)


def inert(name: str, note: str, *harmless: Any) -> Field:
    return Field(name, "no effect", note, harmless)


@dataclass(frozen=True)
class FieldTable:
    """The fields of one route's body: those that work are the fields of its type, with what that says of them."""

    route: str
    body: type[BaseModel]
    others: tuple[Field, ...] = ()
    """Fields that are refused or have no effect; one that the type has as well is refused on this route."""

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        taken = {field.name for field in self.others}
        working = (
            Field(name, "works", self.body.model_fields[name].description or "")
            for name in _own_first(self.body)
            if name not in taken
        )
        return (*working, *self.others)

    @property
    def names(self) -> list[str]:
        return [field.name for field in self.fields]

    def effective(self, body: Mapping[str, Any], unknown: UnknownFields) -> dict[str, Any]:
        """Return the fields of a body that mean something; what has no effect is named in `unknown.ignored`.

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


def _own_first(body: type[BaseModel]) -> Iterator[str]:
    """Yield the names of a type's fields, those that it shares with other types behind its own."""
    found = (name for kind in body.__mro__ for name in vars(kind).get("__annotations__", ()))
    return (name for name in dict.fromkeys(found) if name in body.model_fields)


MAX_UNKNOWN = 64
"""Most different unknown names of a request; each is compared with all known ones, which takes time."""
_WHY = "no such field is known here"


@dataclass(frozen=True)
class UnknownFields:
    """The rule for unknown names of one request: they are noted as ignored, or refused."""

    ignored: Ignored
    strict: bool = False
    """True under `--strict-fields`: all are refused."""

    def take(self, path: str, known: Collection[str], where: str, param: str | None = None) -> None:
        """Note the unknown name `path`, such as `messages.id`, as ignored; `where` has only the fields `known`.

        Raises InvalidField, naming `param`, such as `messages[3].id`, or the path: for a name that is nearly a known
        one, for one too many, and for every one when strict.
        """
        if path in self.ignored.reasons and not self.strict:
            return
        name = path.rpartition(".")[2][:80]
        if self.strict or is_near_miss(name, known):
            raise self.refusal(path, known, where, param)
        if len(self.ignored.reasons) >= MAX_UNKNOWN:
            raise InvalidField(
                (param or path)[:80],
                f"The request has more than {MAX_UNKNOWN} names that are not known, {path[:80]!r} is one: "
                "leave them out."
            )  # fmt: skip
        self.ignored.add(path, _WHY)

    def refusal(self, path: str, known: Collection[str], where: str, param: str | None = None) -> InvalidField:
        name = path.rpartition(".")[2][:80]
        meant = other_spelling(name, known)
        hint = f" Did you mean {meant}?" if meant else did_you_mean(name, known)
        rest = "Leave it out otherwise." if hint else "Leave it out."
        return InvalidField((param or path)[:80], f"{where} has no field {name!r}.{hint} {rest}")

    def take_all(self, prefix: str, names: Iterable[str], known: Collection[str], where: str) -> None:
        """Take those of `names` that are not known, each as `prefix.name`."""
        for name in names:
            if name not in known:
                self.take(f"{prefix}.{name}", known, where, f"{where}.{name}")
