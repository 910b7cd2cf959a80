"""Schemas: the named schemas of the document, each once, made of the types of `server/protocol`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from tilewise.server.fields.field import Field, FieldTable

Schema = dict[str, Any]
_PLACE = "#/components/schemas/"
_NULL = {"type": "null"}


class _Untitled(GenerateJsonSchema):
    """A property's name says all that its title would."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


class Schemas:
    def __init__(self) -> None:
        self.named: dict[str, Schema] = {}

    def of(self, model: type[BaseModel]) -> Schema:
        """A reference to the type's schema."""
        return self._named(model.__name__, self._schema(model))

    def of_body(self, model: type[BaseModel], table: FieldTable, shapes: dict[str, Schema]) -> Schema:
        """Of a request body: the fields that are not refused, with the table's notes.

        `shapes` are of fields that are read by hand, and whose type therefore says little.
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
    """A null is a field that is not there."""
    if field.effect == "no effect":
        return {"description": f"No effect: {field.note}"}
    if not required:
        plain = {key: value for key, value in schema.items() if key != "default"}
        kinds = [kind for kind in schema.get("anyOf", [plain]) if kind != _NULL]
        schema = {"anyOf": [*kinds, _NULL], "default": schema.get("default")}
    return {**schema, "description": field.note}
