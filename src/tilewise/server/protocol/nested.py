"""Objects within a body: what a null and an unknown key in them become, by the types of `server/protocol`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel

from tilewise.server.fields.unknown import UnknownFields

_FORMS = ("response_format", "structured_outputs")
"""Objects of which every key says what the answer has to look like: an unknown one is always refused."""

Models = tuple[type[BaseModel], ...]


def known_keys(model: type[BaseModel], name: str, value: Any, unknown: UnknownFields) -> Any:
    """The value of a field of `model` without the nulls and the unknown keys of objects in it.

    The keys are named in `unknown`. Only objects that have a type of their own are looked into: a schema's keys are
    its own affair. Raises InvalidField for a key that was meant to be another.
    """
    return _pruned(_models_of(model, name), name, value, unknown)


def _pruned(models: Models, path: str, value: Any, unknown: UnknownFields) -> Any:
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
                kept[key] = _pruned(_all_of(models, known[key]), f"{path}.{key}", inner, unknown)
        elif inner is not None and path in _FORMS:
            raise unknown.refusal(f"{path}.{key}", known, path)
        elif inner is not None or unknown.strict:
            unknown.take(f"{path}.{key}", known, path)
    return kept


@cache
def _keys(model: type[BaseModel]) -> dict[str, str]:
    """Names as JSON has them -> names as the class has them."""
    return {field.alias or name: name for name, field in model.model_fields.items()}


def _all_of(models: Models, name: str) -> Models:
    return tuple(found for model in models for found in _models_of(model, name))


@cache
def _models_of(model: type[BaseModel], name: str) -> Models:
    """The classes of objects that a field may hold, in lists too; none, where any keys may come."""
    field = model.model_fields.get(name)
    return () if field is None else tuple(dict.fromkeys(_classes(field.annotation)))


def _classes(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _classes(inner)
