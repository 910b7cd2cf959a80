"""Answers read whole, for the tests of their parts."""

from __future__ import annotations

from tilewise.outputs.parts import AnswerParts, AnswerReader, PartsRule


def split_parts(text: str, rule: PartsRule) -> AnswerParts:
    reader = AnswerReader(rule)
    reader.add(text, ended=True)
    return reader.parts
