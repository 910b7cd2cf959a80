"""Statistics of two scores on the same questions.

Questions differ in difficulty far more than two engines do, so scores are compared question by question. The standard
error of the mean difference is that of the differences d: sqrt(sum (d - mean d)^2 / (n - 1) / n). Where scores are
right or wrong, McNemar's test in its exact form asks how likely it is that questions on which one alone is right are
shared out at least as unevenly by chance: twice the smaller tail of a binomial distribution with one half (Q. McNemar,
Psychometrika 12, 1947; A. Agresti, Categorical Data Analysis, chapter on matched pairs, for both).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True, slots=True)
class Mean:
    value: float
    error: float
    """Its standard error."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        return cls(fmean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0)


@dataclass(frozen=True, slots=True)
class Paired:
    """Scores of `count` questions; the difference is the second's minus the first's."""

    count: int
    first: Mean
    second: Mean
    difference: Mean
    only_first: int
    """Questions on which the first alone is right; of scores that are parts, on which it is better."""
    only_second: int
    p: float | None
    """McNemar's, exact and two-sided; None where scores are not right or wrong."""

    @classmethod
    def of(cls, first: Sequence[float], second: Sequence[float]) -> Paired:
        differences = [b - a for a, b in zip(first, second, strict=True)]
        worse, better = sum(d < 0 for d in differences), sum(d > 0 for d in differences)
        plain = all(score in (0, 1) for score in (*first, *second))
        p = mcnemar(worse, better) if plain else None
        return cls(len(first), Mean.of(first), Mean.of(second), Mean.of(differences), worse, better, p)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided and exact.

    >>> mcnemar(0, 5)
    0.0625
    """
    count, smaller = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(count, k) for k in range(smaller + 1))
    return min(1.0, 2.0 * tail / float(2**count))
