"""JSON schemas and patterns as clients write them -> the largest part of them that can be followed token by token.

In a schema a null keyword is an absent one. In a pattern what looks around a place (word boundaries, look-ahead,
look-behind) and what refers back to a group cannot be followed: without an assertion a pattern lets through all that it
did, and more; a reference becomes any text. So the rest holds, and what is left out of it has a name.

A whole answer can be held against its schema by a validator that knows all keywords, in a process of its own.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tilewise.inputs.sandbox import run_confined
from tilewise.inputs.schema import Schema, close_objects, mapped, texts_in

_LOOK = re.compile(r"\(\?<?[=!]")
_REFERENCE = re.compile(r"\\(?:[1-9]\d?|k<\w+>|k'\w+')|\(\?P=\w+\)")
_QUANTIFIER = re.compile(r"(?:[*+?]|\{\d+(?:,\d*)?\})[?+]?")
_CLASS_START = re.compile(r"\[\^?\]?")
"""The beginning of a class: a bracket that follows at once stands for itself."""
_ANY = r"[\s\S]*"
_MAY_BE_NULL = ("const", "default", "example")
SECONDS = 2
_MOST_FAULTS = 5
_MOST_CHARACTERS = 300


def relaxed(pattern: str) -> tuple[str, tuple[str, ...]]:
    r"""Return the pattern that can be followed, and the names of what it lacks.

    >>> relaxed(r"(\d{1,3}\.?\b){4}")
    ('(\\d{1,3}\\.?){4}', ('word boundary',))
    >>> relaxed("^(?!a|b).+")
    ('^.+', ('look-around',))
    """
    kept: list[str] = []
    lacks: dict[str, None] = {}
    ends = _group_ends(pattern)
    place = 0
    while place < len(pattern):
        if found := _REFERENCE.match(pattern, place):
            lacks["back-reference"] = None
            kept.append(_ANY)
            place = _behind_quantifier(pattern, found.end())
        elif pattern[place : place + 2] in (r"\b", r"\B"):
            lacks["word boundary"] = None
            place = _behind_quantifier(pattern, place + 2)
        elif _LOOK.match(pattern, place) and place in ends:
            lacks["look-around"] = None
            place = _behind_quantifier(pattern, ends[place])
        else:
            end = _behind_atom(pattern, place)
            kept.append(pattern[place:end])
            place = end
    return "".join(kept), tuple(lacks)


def _behind_atom(pattern: str, place: int) -> int:
    """Return the place behind an atom: an escape or a class as a whole, or else one character."""
    if pattern[place] == "\\":
        return place + 2
    return _behind_class(pattern, place) if pattern[place] == "[" else place + 1


def _behind_class(pattern: str, place: int) -> int:
    depth = 0
    while place < len(pattern):
        if pattern[place] == "[":
            depth += 1
            place = _CLASS_START.match(pattern, place).end()  # type: ignore[union-attr]
        else:
            depth -= pattern[place] == "]"
            place += 1 + (pattern[place] == "\\")
        if depth == 0:
            break
    return place


def _group_ends(pattern: str) -> dict[int, int]:
    """Return the places behind groups by those of their opening parentheses.

    A group that is not closed is left out: it is for the parser to refuse. All are found in one pass, as a pattern of
    nothing but openings would be read to its end for each of them.
    """
    ends: dict[int, int] = {}
    opened: list[int] = []
    place = 0
    while place < len(pattern):
        behind = _behind_atom(pattern, place)
        if pattern[place] == "(":
            opened.append(place)
        elif pattern[place] == ")" and opened:
            ends[opened.pop()] = behind
        place = behind
    return ends


def _behind_quantifier(pattern: str, place: int) -> int:
    found = _QUANTIFIER.match(pattern, place)
    return found.end() if found else place


@dataclass
class PreparedSchema:
    """A schema as it is followed, as an answer may be checked against it, and what of it is not followed."""

    followed: Any
    complete: Any
    unenforced: dict[str, None]


def prepare_schema(schema: Any, closed: bool) -> PreparedSchema:
    """Prepare a schema, in time and memory in proportion to its size.

    `closed`: objects that do not say if they are open are closed.
    """
    tidy = _tidied(schema)
    unenforced: dict[str, None] = {}
    followed = _followable(tidy, unenforced)
    if closed:
        followed = close_objects(followed, unenforced)
    followed = _without_counts(followed, unenforced)
    return PreparedSchema(followed, tidy, unenforced)


def _tidied(schema: Any) -> Any:
    """Return the schema without nulls, and with OpenAPI's `nullable` as a type."""
    if not isinstance(schema, dict):
        return schema
    found = {key: value for key, value in schema.items() if value is not None or key in _MAY_BE_NULL}
    found = mapped(found, _tidied)
    if found.pop("nullable", False) is True and isinstance(found.get("type"), (str, list)):
        kinds = [found["type"]] if isinstance(found["type"], str) else found["type"]
        found["type"] = [*kinds, *(["null"] if "null" not in kinds else [])]
    return found


def _followable(schema: Any, unenforced: dict[str, None]) -> Any:
    """Return the schema without the parts of patterns that cannot be followed."""
    if not isinstance(schema, dict):
        return schema
    found = mapped(schema, lambda below: _followable(below, unenforced))
    name = found.get("$schema")
    if name is not None and not (isinstance(name, str) and "json-schema.org/" in name):
        del found["$schema"]
    if isinstance(found.get("pattern"), str):
        found["pattern"], lacks = relaxed(found["pattern"])
        unenforced.update(dict.fromkeys(lacks))
    _drop_patterns_of_keys(found, unenforced)
    return found


def _drop_patterns_of_keys(schema: Schema, unenforced: dict[str, None]) -> None:
    """Drop patterns of keys that cannot be followed; their keys may come.

    A relaxed pattern would match more keys, and so ask more of an answer than the schema does.
    """
    patterns = schema.get("patternProperties")
    if not isinstance(patterns, dict):
        return
    kept = {pattern: below for pattern, below in patterns.items() if not relaxed(pattern)[1]}
    if len(kept) < len(patterns):
        schema["patternProperties"] = kept
        schema["additionalProperties"] = True
        unenforced["patternProperties"] = None


def _without_counts(schema: Any, unenforced: dict[str, None]) -> Any:
    """Return the schema without counts of keys that the parser cannot do: it needs all listed keys to be required."""
    if not isinstance(schema, dict):
        return schema
    found = mapped(schema, lambda below: _without_counts(below, unenforced))
    listed = found.get("properties")
    if isinstance(listed, dict) and not set(listed) <= set(texts_in(found.get("required"))):
        for name in ("minProperties", "maxProperties"):
            if found.pop(name, None) is not None:
                unenforced[name] = None
    return found


def schema_faults(pairs: Sequence[tuple[Any, str]]) -> list[list[str]]:
    """Return what is wrong with each text by its schema, as sentences; an empty list if it fulfils it.

    A schema may ask for work without end: patterns that backtrack, references that multiply.
    """
    missing = [f"The answer could not be checked against its schema within {SECONDS} seconds."]
    return run_confined(find_faults, pairs, len(pairs), missing, SECONDS)


def find_faults(pairs: Sequence[tuple[Any, str]]) -> Iterator[list[str]]:
    import jsonschema  # type: ignore[import-untyped]
    from referencing import Registry

    def faults(schema: Any, text: str) -> list[str]:
        complete = prepare_schema(schema, closed=False).complete
        kind = jsonschema.validators.validator_for(complete, default=jsonschema.Draft202012Validator)
        try:
            found = itertools.islice(kind(complete, registry=Registry()).iter_errors(json.loads(text)), _MOST_FAULTS)
            return [f"{error.json_path}: {error.message}"[:_MOST_CHARACTERS] for error in found]
        except Exception as error:  # whatever an untrusted schema makes the library raise is its result
            return [f"The answer could not be checked against its schema ({type(error).__name__})."]

    jsonschema.validate([1], {"items": {"type": "integer"}})  # reads what it has to, before no file can be opened
    return itertools.starmap(faults, pairs)
