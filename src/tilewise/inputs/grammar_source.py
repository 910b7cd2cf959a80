"""What a caller writes (schema, pattern, grammar) -> the form that the parser takes, within limits."""

from __future__ import annotations

from typing import Any

from llguidance import LLMatcher, LLParserLimits, grammar_from, regex_to_lark

WHITE_SPACE = r"[ ]|\n[ \t]{0,24}"
"""Between the parts of JSON: a model that may write white space without end sometimes does."""


def parser_limits() -> LLParserLimits:
    """Milliseconds a token, a tenth of a second at the very worst, and some tens of megabytes."""
    return LLParserLimits(
        initial_lexer_fuel=200_000,
        step_lexer_fuel=50_000,
        step_max_items=20_000,
        max_lexer_states=20_000,
        max_grammar_size=50_000,
        verbose_errors=False,
    )


def translate(form: str, text: str, options: dict[str, Any]) -> str:
    """`form` is "json" (a schema), "regex" or "grammar" (Lark or GBNF); `options` are of JSON.

    Raises ValueError where the library notices at once; most errors show in `problem_of`.
    """
    if form == "json":
        return LLMatcher.grammar_from_json_schema(text, overrides=options)  # type: ignore[arg-type]
    if form == "regex":
        return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(text, use_ascii='d')}/")  # \d means 0 to 9
    return grammar_from("grammar", text)


def problem_of(source: str) -> str:
    """Why a translated grammar cannot be used; empty if it can."""
    return LLMatcher.validate_grammar(source, limits=parser_limits())
