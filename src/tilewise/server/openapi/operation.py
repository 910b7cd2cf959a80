"""Operation: what a route takes and gives, as its entry in the document says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel

from tilewise.server.fields.field import FieldTable
from tilewise.server.openapi.schemas import Schema, Schemas
from tilewise.server.protocol.answers import ErrorBody

ALWAYS = (413, 431)
"""What the door answers, whatever is asked; 401 comes with keys."""
JSON_BODY = (400, 404, 408, 500)
GENERATION = (*JSON_BODY, 429, 503, 504)


@dataclass(frozen=True)
class RequestBody:
    model: type[BaseModel]
    table: FieldTable
    examples: Mapping[str, dict[str, Any]]
    """By what they show; each of them is answered by the demo model."""
    shapes: dict[str, Schema] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Operation:
    gives: str
    """What a 200 means."""
    answer: type[BaseModel] | tuple[type[BaseModel], ...] | str | None = None
    """The JSON of a 200, or another media type; None = an empty body; of several, one."""
    body: RequestBody | tuple[RequestBody, ...] | None = None
    """What is sent; of several, one."""
    events: type[BaseModel] | tuple[type[BaseModel], ...] | None = None
    """The JSON of each event, where the body may ask for a stream."""
    done: bool = True
    """Whether a stream ends with `[DONE]`."""
    statuses: tuple[int, ...] = ()
    """Of errors, beside those that the door gives."""

    def entry(self, schemas: Schemas, keys: bool) -> Schema:
        """Without name and summary, which the route has."""
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
