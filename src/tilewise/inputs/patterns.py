"""Regular expressions as people write them -> the largest part of them that can be followed token by token.

What looks around a place (word boundaries, look-ahead, look-behind) and what refers back to a group cannot be followed.
Without an assertion a pattern lets through all that it did, and more; a reference becomes any text. So the rest of a
pattern holds, and what is left out of it has a name.
"""

from __future__ import annotations

import re

_LOOK = re.compile(r"\(\?<?[=!]")
_REFERENCE = re.compile(r"\\(?:[1-9]\d?|k<\w+>|k'\w+')|\(\?P=\w+\)")
_QUANTIFIER = re.compile(r"(?:[*+?]|\{\d+(?:,\d*)?\})[?+]?")
_ANY = r"[\s\S]*"


def relaxed(pattern: str) -> tuple[str, tuple[str, ...]]:
    r"""Return the pattern that can be followed, and the names of what it lacks.

    >>> relaxed(r"(\d{1,3}\.?\b){4}")
    ('(\\d{1,3}\\.?){4}', ('word boundary',))
    >>> relaxed("^(?!a|b).+")
    ('^.+', ('look-around',))
    """
    kept: list[str] = []
    lacks: dict[str, None] = {}
    place = 0
    while place < len(pattern):
        if found := _REFERENCE.match(pattern, place):
            lacks["back-reference"] = None
            kept.append(_ANY)
            place = _behind_quantifier(pattern, found.end())
        elif pattern[place : place + 2] in (r"\b", r"\B"):
            lacks["word boundary"] = None
            place = _behind_quantifier(pattern, place + 2)
        elif _LOOK.match(pattern, place) and (end := _behind_group(pattern, place)) is not None:
            lacks["look-around"] = None
            place = _behind_quantifier(pattern, end)
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
    place += 1
    if pattern.startswith("^", place):
        place += 1
    if pattern.startswith("]", place):  # first in a class, it stands for itself
        place += 1
    while place < len(pattern) and pattern[place] != "]":
        place = _behind_class(pattern, place) if pattern[place] == "[" else place + 1 + (pattern[place] == "\\")
    return place + 1


def _behind_group(pattern: str, place: int) -> int | None:
    """Return the place behind a group; None for one that is not closed, which is for the parser to refuse."""
    depth = 0
    while place < len(pattern):
        depth += (pattern[place] == "(") - (pattern[place] == ")")
        place = _behind_atom(pattern, place)
        if depth == 0:
            return place
    return None


def _behind_quantifier(pattern: str, place: int) -> int:
    found = _QUANTIFIER.match(pattern, place)
    return found.end() if found else place
