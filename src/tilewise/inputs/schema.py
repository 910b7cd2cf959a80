"""JSON schemas: the keywords that there are, and the objects of a schema closed.

An unknown keyword that is nearly a known one is refused, others are told to the caller.

Objects that list their properties are closed, as they are by the backends of vLLM: a model that may add keys of its own
sometimes adds them until its tokens are spent. What a schema combines (`allOf`, `anyOf`, `oneOf`, `$ref` beside
properties) is one object, and closed as one: each of its parts admits the names of the others. What says that it is
open (`additionalProperties`, `unevaluatedProperties`) stays so, and so does an object that lists nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote

from tilewise.errors import InvalidRequest, nearest
from tilewise.ignored import other_spelling

Schema = dict[str, Any]
MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
SINGLE = ("additionalProperties", "items", "additionalItems", "contains", "not", "propertyNames", "if", "then",
           "else", "unevaluatedProperties", "unevaluatedItems")  # fmt: skip
_CONDITIONAL = ("if", "then", "else")
_MOST_NAMES = 10_000
"""Most names that closing may write beside those of the schema."""
_MOST_INLINED = 200
_MOST_LINKS = 50
"""Most references that lead from one to the next."""
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
            if (key in MAPS or key == "dependencies") and isinstance(value, dict):
                waiting += value.values()
            elif (key in LISTS or key == "items") and isinstance(value, list):
                waiting += value
            elif key in SINGLE:
                waiting.append(value)


def mapped(schema: Schema, change: Any) -> Schema:
    """Return the schema with each schema directly below it changed."""
    found = dict(schema)
    for key, value in schema.items():
        if key in MAPS and isinstance(value, dict):
            found[key] = {name: True if below is None else change(below) for name, below in value.items()}
        elif (key in LISTS or key == "items") and isinstance(value, list):
            found[key] = [change(below) for below in value]
        elif key in SINGLE:
            found[key] = change(value)
    return found


def texts_in(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def close_objects(schema: Any, unenforced: dict[str, None]) -> Any:
    """Return the schema, its objects closed; one that would grow beyond its limits stays open, and so it is noted."""
    try:
        return _Closing(schema).close(schema)
    except _TooLarge:
        unenforced["additionalProperties"] = None
        return schema


class _TooLarge(Exception):
    """A combination that would grow beyond its limits; it stays open."""


@dataclass(frozen=True)
class _Keys:
    """The keys that the parts of one object speak of.

    `listed`: a part lists its properties. `open`: a part says that others may come.
    """

    names: frozenset[str] = frozenset()
    patterns: frozenset[str] = frozenset()
    listed: bool = False
    open: bool = False

    def __add__(self, other: _Keys) -> _Keys:
        return _Keys(
            self.names | other.names, self.patterns | other.patterns, self.listed or other.listed,
            self.open or other.open,
        )  # fmt: skip


@dataclass
class _Closing:
    """The closing of the objects of one schema: none may have keys that no part of it speaks of."""

    root: Any
    _written: int = 0
    _inlined: int = 0
    _known: dict[str, _Keys] = field(default_factory=dict)

    def close(self, schema: Any, others: _Keys = _Keys(), inside: tuple[str, ...] = ()) -> Any:
        """Return a schema, closed.

        `others` are the keys of what else holds at the same place; `inside` the references that led here.
        """
        if not isinstance(schema, dict):
            return schema
        found = self._close_below(schema)
        own = self._own(schema)
        parts = list(self._parts(schema))
        total = sum((keys for _, _, keys in parts), start=own)
        self._count(len(parts) * (len(parts) + len(total.names)))
        # A part must let through the keys of its neighbours: it is closed with those of all the others admitted.
        for number, (key, place, _) in enumerate(parts):
            around = sum((keys for other, (_, _, keys) in enumerate(parts) if other != number), start=own + others)
            self._close_part(found, key, place, around, inside)
        admitted, silent = total + others, "additionalProperties" not in schema
        if silent and (own.listed or others.listed) and not admitted.open and _enough(schema, admitted):
            self._shut(found, admitted)
        if found.get("unevaluatedProperties") is False and not total.open:
            del found["unevaluatedProperties"]  # its parts are closed instead
        return found

    def _close_below(self, schema: Schema) -> Schema:
        """Return the schema with the objects within it closed, which nothing else speaks of."""
        rest = {key: value for key, value in schema.items() if key not in ("allOf", "anyOf", "oneOf", "$ref")}
        closed = mapped(rest, self.close)
        return {key: closed.get(key, value) for key, value in schema.items()}

    def _parts(self, schema: Schema) -> Iterator[tuple[str, int, _Keys]]:
        """Yield what else holds of the same value: (keyword, which of `allOf`, its keys)."""
        for number, branch in enumerate(_schemas(schema, "allOf")):
            yield "allOf", number, self._keys(branch)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                yield key, 0, sum(map(self._keys, _schemas(schema, key)), start=_Keys())
        if "$ref" in schema:
            yield "$ref", 0, self._keys({"$ref": schema["$ref"]})

    def _close_part(self, found: Schema, key: str, place: int, others: _Keys, inside: tuple[str, ...]) -> None:
        if key == "allOf":
            found[key] = list(found[key])
            found[key][place] = self.close(found[key][place], others, inside)
        elif key != "$ref":
            found[key] = [self.close(branch, others, inside) for branch in _schemas(found, key)]
        elif others != _Keys() and found["$ref"] not in inside:
            self._inline(found, others, inside)

    def _inline(self, found: Schema, others: _Keys, inside: tuple[str, ...]) -> None:
        """Write out a definition that is part of an object, which here admits what it does not elsewhere."""
        self._inlined += 1
        if self._inlined > _MOST_INLINED or len(inside) > _MOST_LINKS:
            raise _TooLarge
        target = self._target(found["$ref"])
        if isinstance(target, dict) and isinstance(found.get("allOf", []), list):
            name = found.pop("$ref")
            kept = {key: value for key, value in target.items() if key not in ("$defs", "definitions", "$id")}
            self._count(len(repr(kept)) // 8)
            found["allOf"] = [*found.get("allOf", ()), self.close(kept, others, (*inside, name))]

    def _shut(self, found: Schema, admitted: _Keys) -> None:
        listed, shapes = found.get("properties", {}), found.get("patternProperties", {})
        if not isinstance(listed, dict) or not isinstance(shapes, dict):
            return  # the parser refuses it by name
        missing = sorted(admitted.names - set(listed))
        self._count(len(missing) + len(admitted.patterns))
        if missing:
            found["properties"] = {**listed, **dict.fromkeys(missing, True)}
        if admitted.patterns - set(shapes):
            found["patternProperties"] = {**dict.fromkeys(sorted(admitted.patterns), True), **shapes}
        found["additionalProperties"] = False

    def _count(self, written: int) -> None:
        self._written += written
        if self._written > _MOST_NAMES:
            raise _TooLarge

    def _keys(self, schema: Any, inside: tuple[str, ...] = ()) -> _Keys:
        """Return the keys of a schema and of all that it combines."""
        if not isinstance(schema, dict):
            return _Keys()
        found = self._own(schema, inside)
        for key in ("allOf", "anyOf", "oneOf"):
            for branch in _schemas(schema, key):
                found += self._keys(branch, inside)
        reference = schema.get("$ref")
        return found + self._keys_of(reference, inside) if isinstance(reference, str) else found

    def _own(self, schema: Schema, inside: tuple[str, ...] = ()) -> _Keys:
        """Return the keys that a schema speaks of itself, those under a condition included."""
        found = _own_keys(schema)
        for branch in (*(schema.get(key) for key in _CONDITIONAL), *_map(schema, "dependentSchemas").values()):
            if isinstance(branch, dict):
                found += replace(self._keys(branch, inside), listed=found.listed, open=False)
        return found

    def _keys_of(self, reference: str, inside: tuple[str, ...]) -> _Keys:
        if reference in inside:
            return _Keys()
        if len(inside) > _MOST_LINKS:
            raise _TooLarge
        if reference not in self._known:
            self._known[reference] = self._keys(self._target(reference), (*inside, reference))
        return self._known[reference]

    def _target(self, reference: Any) -> Any:
        """Return what a reference within the schema points to; None for others, which the parser refuses."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        target = self.root
        for step in unquote(reference[1:]).split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and step.isdecimal() and int(step) < len(target):
                target = target[int(step)]
            elif isinstance(target, dict):
                target = target.get(step)
            else:
                return None
        return target


def _own_keys(schema: Schema) -> _Keys:
    """Return the keys that a schema itself speaks of. Those that it requires may come, listed or not."""
    names = [*_map(schema, "properties"), *texts_in(schema.get("required"))]
    for name, needed in (*_map(schema, "dependentRequired").items(), *_map(schema, "dependencies").items()):
        names += [name, *texts_in(needed), *(_map(needed, "properties") if isinstance(needed, dict) else ())]
    says_open = any(schema.get(key, False) is not False for key in ("additionalProperties", "unevaluatedProperties"))
    listed = any(isinstance(schema.get(key), dict) for key in ("properties", "patternProperties"))
    return _Keys(frozenset(names), frozenset(_map(schema, "patternProperties")), listed, says_open)


def _enough(schema: Schema, admitted: _Keys) -> bool:
    """True if at least as many keys may come as `minProperties` asks for."""
    fewest = schema.get("minProperties", 0)
    return bool(admitted.patterns) or not isinstance(fewest, (int, float)) or fewest <= len(admitted.names)


def _schemas(schema: Schema, key: str) -> list[Any]:
    value = schema.get(key)
    return value if isinstance(value, list) else []


def _map(schema: Schema, key: str) -> dict[str, Any]:
    value = schema.get(key)
    return value if isinstance(value, dict) else {}
