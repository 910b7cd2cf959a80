"""Operation: what a route takes and answers, and its entry in the OpenAPI document, where each schema stands once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from tilewise.server.fields.field import Field, FieldTable
from tilewise.server.protocol.answers import ErrorBody

Schema = dict[str, Any]
_PLACE = "#/components/schemas/"
_NULL = {"type": "null"}


class _Untitled(GenerateJsonSchema):
    """Schemas without titles: a property's name says all that its title would."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


class Schemas:
    def __init__(self) -> None:
        self.named: dict[str, Schema] = {}

    def of(self, model: type[BaseModel]) -> Schema:
        """Return a reference to the type's schema, which becomes one of `named`."""
        return self._named(model.__name__, self._schema(model))

    def of_body(self, model: type[BaseModel], table: FieldTable, shapes: dict[str, Schema]) -> Schema:
        """Return a reference to the schema of a request body: its fields that are not refused, with the table's notes.

        `shapes` are schemas of fields that are read by hand, and whose type therefore says little.
        """
        schema = self._schema(model)
        typed = schema["properties"] | shapes
        taken = [field for field in table.fields if field.effect != "refused"]
        required = schema.get("required", [])
        schema["properties"] = {
            field.name: _property(field, typed.get(field.name, {}), field.name in required) for field in taken
        }
        return self._named(model.__name__, schema)

    def _schema(self, model: type[BaseModel]) -> Schema:
        schema = model.model_json_schema(ref_template=f"{_PLACE}{{model}}", schema_generator=_Untitled)
        self.named |= schema.pop("$defs", {})
        return schema

    def _named(self, name: str, schema: Schema) -> Schema:
        self.named[name] = schema
        return {"$ref": f"{_PLACE}{name}"}


def _property(field: Field, schema: Schema, required: bool) -> Schema:
    """Return the schema of a field. It may be null unless it is required: then it counts as absent."""
    if field.effect == "no effect":
        return {"description": f"No effect: {field.note}"}
    if not required:
        plain = {key: value for key, value in schema.items() if key not in ("default", "description")}
        kinds = [kind for kind in schema.get("anyOf", [plain]) if kind != _NULL]
        schema = {"anyOf": [*kinds, _NULL], "default": schema.get("default")}
    return {**schema, "description": field.note}


ALWAYS = (413, 431)
"""Statuses of errors that the middleware may answer with on every path; 401 is added where there are keys."""
JSON_BODY = (400, 404, 408, 500)
GENERATION = (*JSON_BODY, 429, 503, 504)


@dataclass(frozen=True)
class RequestBody:
    model: type[BaseModel]
    table: FieldTable
    examples: Mapping[str, dict[str, Any]]
    """Bodies by what they show; each of them is answered by the demo model."""
    shapes: dict[str, Schema] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Operation:
    gives: str
    """Meaning of a 200."""
    answer: type[BaseModel] | tuple[type[BaseModel], ...] | str | None = None
    """Type of a 200's JSON, or its other media type; a tuple = one of several, None = an empty body."""
    body: RequestBody | tuple[RequestBody, ...] | None = None
    """Type of the request's JSON; a tuple = one of several, None = no body."""
    events: type[BaseModel] | tuple[type[BaseModel], ...] | None = None
    """Type of each event's JSON, where the body may ask for a stream."""
    done: bool = True
    """True if a stream ends with `[DONE]`."""
    statuses: tuple[int, ...] = ()
    """Statuses of errors, beside those of the middleware (`ALWAYS`)."""

    def entry(self, schemas: Schemas, keys: bool) -> Schema:
        """Return the entry in the document, without name and summary, which the route has."""
        codes = sorted({*self.statuses, *ALWAYS, *((401,) if keys else ())})
        errors = {str(code): {"$ref": f"#/components/responses/{code}"} for code in codes}
        entry: Schema = {"responses": {"200": self._answered(schemas), **errors}}
        if self.body is not None:
            entry["requestBody"] = _request(_several(self.body), schemas)
        return entry

    def _answered(self, schemas: Schemas) -> Schema:
        content: Schema = {}
        if isinstance(self.answer, str):
            content[self.answer] = {"schema": {"type": "string"}}
        elif self.answer is not None:
            content["application/json"] = {"schema": _one_of([schemas.of(kind) for kind in _several(self.answer)])}
        if self.events is not None:
            content["text/event-stream"] = {"itemSchema": self._event(_several(self.events), schemas)}
        return {"description": self.gives, **({"content": content} if content else {})}

    def _event(self, models: tuple[type[BaseModel], ...], schemas: Schemas) -> Schema:
        kinds = [schemas.of(model) for model in (*models, *((ErrorBody,) if self.done else ()))]
        data: list[Schema] = [
            {"type": "string", "contentMediaType": "application/json", "contentSchema": {"anyOf": kinds}}
        ]
        if self.done:
            data.append({"const": "[DONE]"})
        return {"type": "object", "properties": {"data": {"anyOf": data}}, "required": ["data"]}


Kind = TypeVar("Kind")


def _several(kinds: Kind | tuple[Kind, ...]) -> tuple[Kind, ...]:
    return kinds if isinstance(kinds, tuple) else (kinds,)


def _one_of(kinds: list[Schema]) -> Schema:
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


def _request(bodies: tuple[RequestBody, ...], schemas: Schemas) -> Schema:
    kinds = [schemas.of_body(body.model, body.table, body.shapes) for body in bodies]
    examples = {name: value for body in bodies for name, value in body.examples.items()}
    media = {
        "schema": _one_of(kinds),
        "examples": {name: {"summary": name, "value": value} for name, value in examples.items()},
    }
    return {"required": True, "content": {"application/json": media}}
