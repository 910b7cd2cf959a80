"""Functions as GPT-OSS is shown them: types of a TypeScript namespace, with descriptions as comments."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_NAMES = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean", "null": "null"}
_DEEPEST = 20


def namespace_of(functions: Sequence[Mapping[str, Any]]) -> str:
    """The namespace `functions`. What TypeScript has no word for becomes `any`."""
    types = "".join(f"{_function(function)}\n\n" for function in functions)
    return f"namespace functions {{\n\n{types}}} // namespace functions"


def _function(function: Mapping[str, Any]) -> str:
    comment = _comment(function.get("description"))
    parameters = function.get("parameters")
    takes = f"_: {_type(parameters)}" if isinstance(parameters, dict) and parameters.get("properties") else ""
    return f"{comment}type {function.get('name')} = ({takes}) => any;"


def _comment(text: Any) -> str:
    return "".join(f"// {line}\n" for line in text.splitlines()) if isinstance(text, str) else ""


def _type(schema: Any, depth: int = 0) -> str:
    if not isinstance(schema, dict) or depth > _DEEPEST:
        return "any"
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return " | ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"])
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list) and schema[key]:
            return " | ".join(_type(branch, depth + 1) for branch in schema[key])
    kind = schema.get("type")
    if isinstance(kind, list):
        return " | ".join(_type({**schema, "type": one}, depth + 1) for one in kind) or "any"
    if kind == "array":
        inner = _type(schema.get("items"), depth + 1)
        return f"({inner})[]" if " | " in inner else f"{inner}[]"
    if kind == "object" or "properties" in schema:
        return _object(schema, depth)
    return _NAMES.get(kind, "any") if isinstance(kind, str) else "any"


def _object(schema: Mapping[str, Any], depth: int) -> str:
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return "object"
    return "{\n" + "".join(_properties(properties, schema.get("required"), depth)) + "}"


def _properties(properties: Mapping[str, Any], required: Any, depth: int) -> Iterator[str]:
    needed = required if isinstance(required, list) else ()
    for name, schema in properties.items():
        says = schema if isinstance(schema, dict) else {}
        default = says.get("default")
        note = "" if default is None else f" // default: {_default(default)}"
        mark = "" if name in needed else "?"
        yield f"{_comment(says.get('description'))}{name}{mark}: {_type(schema, depth + 1)},{note}\n"


def _default(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
