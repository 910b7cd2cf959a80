"""Operation: what a route takes and gives, as its entry in the document says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
    answer: type[BaseModel] | str | None = None
    """The JSON of a 200, or another media type; None = an empty body."""
    body: RequestBody | None = None
    events: type[BaseModel] | None = None
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
            entry["requestBody"] = _request(self.body, schemas)
        return entry

    def _answered(self, schemas: Schemas) -> Schema:
        content: Schema = {}
        if isinstance(self.answer, str):
            content[self.answer] = {"schema": {"type": "string"}}
        elif self.answer is not None:
            content["application/json"] = {"schema": schemas.of(self.answer)}
        if self.events is not None:
            content["text/event-stream"] = {"itemSchema": self._event(self.events, schemas)}
        return {"description": self.gives, **({"content": content} if content else {})}

    def _event(self, model: type[BaseModel], schemas: Schemas) -> Schema:
        kinds = [schemas.of(model), schemas.of(ErrorBody)] if self.done else [schemas.of(model)]
        data: list[Schema] = [
            {"type": "string", "contentMediaType": "application/json", "contentSchema": {"anyOf": kinds}}
        ]
        if self.done:
            data.append({"const": "[DONE]"})
        return {"type": "object", "properties": {"data": {"anyOf": data}}, "required": ["data"]}


def _request(body: RequestBody, schemas: Schemas) -> Schema:
    return {
        "required": True,
        "content": {
            "application/json": {
                "schema": schemas.of_body(body.model, body.table, body.shapes),
                "examples": {name: {"summary": name, "value": value} for name, value in body.examples.items()},
            }
        },
    }
