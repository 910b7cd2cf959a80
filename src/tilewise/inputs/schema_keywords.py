"""Unknown keywords of a JSON schema: one that is nearly a known one is refused, others are told to the caller."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tilewise.errors import InvalidRequest, nearest
from tilewise.ignored import other_spelling
from tilewise.inputs.schema import LISTS, MAPS, SINGLE

_MOST_UNKNOWN = 64
"""Most different unknown keywords of a schema; each is compared with all known ones, which takes time."""
_SHORTEST = 4  # letters of a keyword that others can be a near miss of: a note is not meant to be a `not`
_ASSERTING = (
    *MAPS,
    *LISTS,
    *SINGLE,
    *("type", "enum", "const", "required", "pattern", "format", "multipleOf", "minimum", "maximum"),
    *("exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "minItems", "maxItems", "uniqueItems"),
    *("minContains", "maxContains", "minProperties", "maxProperties", "dependentRequired", "dependencies", "nullable"),
    *("$ref", "$dynamicRef", "$recursiveRef"),
)
"""Keywords that ask something of an answer, of JSON Schema's drafts 4 to 2020-12, and OpenAPI's `nullable`."""
_SILENT = frozenset((
    *("title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly", "$comment"),
    *("$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary"),
    *("externalDocs", "xml", "discriminator"),
))  # fmt: skip
"""Keywords that ask nothing of an answer: annotations and names, of JSON Schema and OpenAPI."""
_KNOWN = frozenset(_ASSERTING) | _SILENT
_NEAR = tuple(name for name in _ASSERTING if len(name) >= _SHORTEST)


def unknown_keywords(schema: Any, where: str) -> dict[str, None]:
    """Return the keywords that no schema has, in their order. `where` is what an error calls the schema.

    Raises InvalidRequest for one that is nearly a keyword, and for more of them than can be told.
    """
    found: dict[str, None] = {}
    for below in _schemas_in(schema):
        for name, value in below.items():
            if name in _KNOWN or name in found or name.startswith("x-") or value is None:
                continue
            if meant := other_spelling(name, _ASSERTING) or nearest(name[:80], _NEAR, cutoff=0.8):
                raise InvalidRequest(f"{where} has the keyword {name[:80]!r}, which is none. Did you mean {meant}?")
            if len(found) == _MOST_UNKNOWN:
                raise InvalidRequest(
                    f"{where} has more than {_MOST_UNKNOWN} keywords that are none, {name[:80]!r} is one: "
                    "leave them out."
                )  # fmt: skip
            found[name] = None
    return found


def _schemas_in(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield the schema and all those within it, without what only looks like one, such as the value of an enum."""
    waiting = [schema]
    while waiting:
        one = waiting.pop()
        if not isinstance(one, dict):
            continue
        yield one
        for key, value in one.items():
            if key in MAPS and isinstance(value, dict):
                waiting += value.values()
            elif (key in LISTS or key == "items") and isinstance(value, list):
                waiting += value
            elif key in SINGLE or key == "dependencies":
                waiting += value.values() if key == "dependencies" and isinstance(value, dict) else [value]
