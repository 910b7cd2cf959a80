"""Answers drawn at random from all that a grammar allows, and the schemas and patterns that the tests ask for."""

from __future__ import annotations

import random

from tilewise.engine.grammar import ids_in
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.types import Grammar

SCHEMAS = {
    "flat": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "tall": {"type": "boolean"},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "boxes": {
        "type": "array",
        "minItems": 1,
        "maxItems": 3,
        "items": {
            "type": "object",
            "properties": {
                "label": {"enum": ["人", "stop sign", "café ☕", '"quoted"\n']},
                "box": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 999}, "maxItems": 2},
                "score": {"type": "number", "minimum": 0, "exclusiveMaximum": 1, "multipleOf": 0.25},
            },
            "required": ["label", "box"],
            "additionalProperties": False,
        },
    },
    "either": {"anyOf": [{"type": "null"}, {"const": "无"}, {"$ref": "#/$defs/pair"}], "$defs": {
        "pair": {"type": "object", "properties": {"a": {"type": "string", "pattern": "^[a-c]{2}$"}},
                 "required": ["a"], "additionalProperties": False}}},
}  # fmt: skip
PATTERNS = [r"\d{4}-\d\d", r"[a-c]{1,3}(, [x-z]{2}){0,2}", "(是|不是|也许)。", r"[^\n\"]{2,5}!", "^(yes|no)$"]
CHOICES = ["红色", "红色的花", "green", 'a "b"\\', "😀\n", "gre"]
SUMS = 'start: sum\nsum: NUMBER | sum "+" NUMBER | "(" sum ")"\nNUMBER: /[0-9]{1,2}/'
GBNF = 'root ::= "SELECT " column (", " column)? " FROM " [a-z]{2}\ncolumn ::= "名" | "b"'


def walk(grammar: Grammar, tokenizer: Tokenizer, seed: int, most: int = 2000) -> str:
    """The text of tokens drawn evenly from each mask, with one draw in two for an end where there is one."""
    draw = random.Random(seed)
    matcher = grammar.start(ignore_eos=False)
    stream, text = tokenizer.stream(), ""
    for _ in range(most):
        allowed = ids_in(matcher.masks()[0])
        ends = [token for token in allowed if token in tokenizer.special_ids]
        token = draw.choice(ends if ends and draw.random() < 0.5 else allowed)
        matcher.accept(token)
        if matcher.finish_reason is not None:
            assert matcher.finish_reason == "stop"
            return text
        text += stream.add(token)
    raise AssertionError(f"no end after {most} tokens: {text!r}")
