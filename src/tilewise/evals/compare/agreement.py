"""How alike two engines answer, right or wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

Said = Sequence[int] | str
"""Tokens of an answer, or its text where they are not known."""


@dataclass(frozen=True, slots=True)
class Agreement:
    same: float
    """Share of answers that are equal."""
    prefix: float
    """Mean share of an answer up to the first difference, of the longer of the two."""

    @classmethod
    def of(cls, first: Sequence[Said], second: Sequence[Said]) -> Agreement:
        pairs = list(zip(first, second, strict=True))
        return cls(fmean(a == b for a, b in pairs), fmean(common_share(a, b) for a, b in pairs))


def common_share(first: Said, second: Said) -> float:
    """1 for two empty answers, which agree."""
    longest = max(len(first), len(second))
    common = next((place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    return 1.0 if not longest else (min(len(first), len(second)) if common is None else common) / longest
