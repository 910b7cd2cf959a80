"""The fields of a request body: those that work, are refused or have no effect; and names that none of them has."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, Self, get_args

import pydantic
from pydantic import BaseModel, ConfigDict
from pydantic_core import CoreSchema

from tilewise.errors import InvalidField, did_you_mean
from tilewise.ignored import Ignored, asks_nothing, is_near_miss, other_spelling

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

    def take(self, value: Any, ignored: Ignored) -> bool:
        """Return True if the field works. Otherwise note it as ignored, but for a harmless value.

        Raises InvalidField if it is refused.
        """
        if self.effect == "works":
            return True
        if not asks_nothing(value, self.harmless):
            if self.effect == "refused":
                raise InvalidField(self.name, f"{self.name} is not supported: {self.note}")
            ignored.add(self.name, self.note)
        return False


def refused(name: str, note: str, *harmless: Any) -> Field:
    return Field(name, "refused", note, harmless)


def inert(name: str, note: str, *harmless: Any) -> Field:
    return Field(name, "no effect", note, harmless)


def all_refused(note: str, **harmless: Any) -> tuple[Field, ...]:
    """Return fields that are refused for the same reason, each with its harmless value."""
    return tuple(refused(name, note, value) for name, value in harmless.items())


def all_inert(note: str, *names: str) -> tuple[Field, ...]:
    """Return fields that have no effect for the same reason."""
    return tuple(inert(name, note) for name in names)


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


def _stop_at_first_error(schema: Any) -> None:
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        schema = list(schema.values())
    for part in schema if isinstance(schema, (list, tuple)) else ():
        _stop_at_first_error(part)


class Given(BaseModel):
    """An object of a request body. Scalars are read as pydantic's lax mode reads them (`10.0`, `"0.5"`), as in vLLM.

    A field whose name is one of pydantic's own methods has an underscore behind it, which JSON has not.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, alias_generator=lambda name: name.rstrip("_")
    )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: pydantic.GetCoreSchemaHandler) -> CoreSchema:
        """Return pydantic's schema, in which a list is read up to its first wrong item.

        Only one error is told, and a body of a few megabytes may have a million.
        """
        schema = handler(source)
        _stop_at_first_error(schema)
        return schema


def works(note: str, default: Any = None) -> Any:
    """Declare a field that does what `note` says, a sentence for users; with `...` as default it is required."""
    return pydantic.Field(default, description=note)


class Body(Given):
    """A request body. The fields that work are those of its type."""

    route: ClassVar[str]
    others: ClassVar[tuple[Field, ...]] = ()
    """Fields that clients send besides: refused or without effect. One that the type has as well is refused here."""
    shapes: ClassVar[dict[str, dict[str, Any]]] = {}
    """JSON schemas of fields that are read by hand, and whose type therefore says little."""
    examples: ClassVar[dict[str, dict[str, Any]]] = {}
    """Bodies by what they show; each of them is answered by the demo model."""

    @classmethod
    def read(cls, body: dict[str, Any], unknown: UnknownFields) -> Self:
        """Read a body. A null is a field that is not there, as OpenAI's clients mean it.

        What has no effect is named in `unknown.ignored`. Raises InvalidField, naming the first field that cannot be
        had, and ValidationError for a wrong type.
        """
        known = fields_of(cls)
        kept: dict[str, Any] = {}
        for name, value in body.items():
            if name not in known:
                if value is not None or unknown.strict:
                    unknown.take(name, known, cls.route)
            elif value is not None and known[name].take(value, unknown.ignored):
                kept[name] = value
        pruned = {name: _pruned(_models_of(cls, name), name, value, unknown) for name, value in kept.items()}
        return cls.model_validate(pruned)


@cache
def fields_of(body: type[Body]) -> dict[str, Field]:
    """Return all fields of a type of body by name: those that work, its own before shared ones, then the others."""
    others = {field.name: field for field in body.others}
    declared = dict.fromkeys(name for kind in body.__mro__ for name in vars(kind).get("__annotations__", ()))
    working = [name for name in declared if name in body.model_fields and name not in others]
    return {name: Field(name, "works", body.model_fields[name].description or "") for name in working} | others


_FORMS = ("response_format", "structured_outputs")
"""Objects of which every key says what the answer has to look like: an unknown one is always refused."""

Models = tuple[type[BaseModel], ...]


def _pruned(models: Models, path: str, value: Any, unknown: UnknownFields) -> Any:
    """Return the value of a field without the nulls and the unknown keys of objects in it.

    The keys are named in `unknown`. Only objects that have a type of their own are looked into: a schema's keys are
    its own affair. Raises InvalidField for a key that was meant to be another.
    """
    if not models:
        return value
    if isinstance(value, list):
        return [_pruned(models, path, item, unknown) for item in value]
    if not isinstance(value, dict):
        return value
    kept: dict[str, Any] = {}
    known = {key: name for model in models for key, name in _keys(model).items()}
    for key, inner in value.items():
        if key in known:
            if inner is not None:
                deeper = tuple(found for model in models for found in _models_of(model, known[key]))
                kept[key] = _pruned(deeper, f"{path}.{key}", inner, unknown)
        elif inner is not None and path in _FORMS:
            raise unknown.refusal(f"{path}.{key}", known, path)
        elif inner is not None or unknown.strict:
            unknown.take(f"{path}.{key}", known, path)
    return kept


@cache
def _keys(model: type[BaseModel]) -> dict[str, str]:
    """Return, by the fields' names in JSON, their names in the class."""
    return {field.alias or name: name for name, field in model.model_fields.items()}


@cache
def _models_of(model: type[BaseModel], name: str) -> Models:
    """Return the classes of objects that a field may hold, in lists too; none, where any keys may come."""
    field = model.model_fields.get(name)
    return () if field is None else tuple(dict.fromkeys(_classes(field.annotation)))


def _classes(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _classes(inner)
