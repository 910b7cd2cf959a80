"""Schemas, patterns and grammars of callers -> the form that llguidance's parser takes, within limits."""

from __future__ import annotations

import json
import re
from typing import Any

from llguidance import LLMatcher, LLParserLimits, grammar_from, regex_to_lark

WHITE_SPACE = "[ ]"
"""Pattern of the white space between two parts of JSON, at most one space.

A model that may also break and indent lines sometimes does nothing else, further from the question with each token.
"""


def parser_limits() -> LLParserLimits:
    """Return limits that come to milliseconds a token, at the very worst a tenth of a second, and tens of megabytes."""
    return LLParserLimits(
        initial_lexer_fuel=200_000,
        step_lexer_fuel=50_000,
        step_max_items=20_000,
        max_lexer_states=20_000,
        max_grammar_size=50_000,
        verbose_errors=False,
    )


def translate(form: str, text: str, options: dict[str, Any]) -> str:
    """Translate a text; `form` is "json" (a schema), "regex" or "grammar" (Lark or GBNF); `options` are of JSON.

    Raises ValueError where the library notices at once; most errors show in `check`.
    """
    if form == "json":
        if text in ("true", "false"):  # a schema too, to which options cannot be added
            text = "{}" if text == "true" else '{"enum": []}'
        return LLMatcher.grammar_from_json_schema(text, overrides=options)  # type: ignore[arg-type]
    if form == "regex":
        return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(text, use_ascii='d')}/")  # \d means 0 to 9
    # Told apart by what only GBNF writes: the library's own guess takes Lark that begins with `?start:` for GBNF.
    is_lark = "::=" not in text or re.search(r"^\s*[?!]?start\s*:(?!:=)", text, re.MULTILINE) is not None
    return LLMatcher.grammar_from_lark(text) if is_lark else grammar_from("grammar", text)


def check(source: str) -> tuple[str, list[str]]:
    """Return why a translated grammar cannot be used, "" if it can, and the parts of a schema that are not followed."""
    failed, notes = LLMatcher.validate_grammar_with_warnings(source, limits=parser_limits())
    if failed:
        return LLMatcher.validate_grammar(source, limits=parser_limits()), []
    return "", list(dict.fromkeys(name for note in notes for name in _names_in(note)))


def _names_in(note: str) -> list[str]:
    """Return the keywords that a warning of the library speaks of."""
    if note.startswith("Unimplemented keys: "):
        return [str(key) for key in json.loads(note.removeprefix("Unimplemented keys: "))]
    if note.startswith("Unknown format: "):
        return [f"format {note.removeprefix('Unknown format: ')}"]
    return ["oneOf"] if note.startswith("oneOf") else [note]
