"""Whether an answer is one, by a rule that knows neither picture nor truth.

An answer passes if it is not empty, ended by itself, does not repeat itself, holds no character that could not be
decoded, and is in words of the language of its question.
"""

from __future__ import annotations

import re

from tilewise.evals.answer import Answer
from tilewise.evals.spot.cases import Case, Language
from tilewise.types import TokenIds

_CHINESE = re.compile(r"[\u3400-\u9fff]")
_LETTER = re.compile(r"[^\W\d_]")
LONGEST_PERIOD, REPEATS, SHORTEST = 32, 4, 8
"""A stretch of at most so many tokens that stands so often in a row, over at least so many tokens, is repetition."""


def fault(answer: Answer, case: Case) -> str | None:
    """What is wrong with an answer, or None if it passes."""
    if not answer.text.strip():
        return "empty"
    if repeats(answer.token_ids):
        return "repeats itself"
    if answer.finish_reason != "stop":
        return f"cut off after {len(answer.token_ids)} tokens"
    if "\ufffd" in answer.text:
        return "characters that cannot be decoded"
    language = spoken(answer.text)
    if language is None:
        return "no words" if case.words else None
    return None if language == case.language else f"not in {case.language}"


def repeats(ids: TokenIds) -> bool:
    """Whether some stretch of tokens stands four times in a row."""
    return any(_runs(ids, period) >= max(REPEATS * period, SHORTEST) for period in range(1, LONGEST_PERIOD + 1))


def _runs(ids: TokenIds, period: int) -> int:
    """Tokens of the longest stretch in which every token is the one `period` before it."""
    longest = run = 0
    for earlier, later in zip(ids, ids[period:], strict=False):
        run = run + 1 if earlier == later else 0
        longest = max(longest, run)
    return longest + period if longest else 0


def spoken(text: str) -> Language | None:
    """The language of most letters; None where there are no letters, as in a number."""
    letters, chinese = len(_LETTER.findall(text)), len(_CHINESE.findall(text))
    return None if not letters else "Chinese" if 2 * chinese >= letters else "English"
