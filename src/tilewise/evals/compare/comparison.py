"""Comparison: two results side by side, task by task and altogether, with the statistics of paired scores."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal

from tilewise.errors import InvalidConfig
from tilewise.evals.compare.result import AnsweredQuestion, EvalResult, Speed


@dataclass(frozen=True, slots=True)
class Mean:
    value: float
    error: float
    """Standard error of the mean."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        return cls(fmean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0)


@dataclass(frozen=True, slots=True)
class PairedScores:
    """Scores of the same `count` questions in two results; the difference is the second's minus the first's.

    Questions differ in difficulty far more than two engines do, so scores are compared question by question. The
    standard error of the mean difference is that of the differences d: sqrt(sum (d - mean d)^2 / (n - 1) / n)
    (A. Agresti, Categorical Data Analysis, chapter on matched pairs).
    """

    count: int
    first: Mean
    second: Mean
    difference: Mean
    only_first: int
    """Questions on which the first alone is right, or scores higher where scores lie between 0 and 1."""
    only_second: int
    p: float | None
    """p-value of McNemar's exact test, two-sided; None where some score is neither 0 nor 1."""

    @classmethod
    def of(cls, first: Sequence[float], second: Sequence[float]) -> PairedScores:
        differences = [b - a for a, b in zip(first, second, strict=True)]
        worse, better = sum(d < 0 for d in differences), sum(d > 0 for d in differences)
        plain = all(score in (0, 1) for score in (*first, *second))
        p = mcnemar(worse, better) if plain else None
        return cls(len(first), Mean.of(first), Mean.of(second), Mean.of(differences), worse, better, p)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the p-value of McNemar's exact test, two-sided.

    The test asks how likely it is that questions on which one result alone is right are shared out at least as unevenly
    by chance: twice the smaller tail of a binomial distribution with one half (Q. McNemar, Psychometrika 12, 1947;
    A. Agresti, Categorical Data Analysis, chapter on matched pairs).

    >>> mcnemar(0, 5)
    0.0625
    """
    count, smaller = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(count, k) for k in range(smaller + 1))
    return min(1.0, 2.0 * tail / float(2**count))


Said = Sequence[int] | str
"""Token ids of an answer, or its text where they are not known."""


@dataclass(frozen=True, slots=True)
class Agreement:
    same: float
    """Share of answers that are equal."""
    prefix: float
    """Mean length of the common beginning of two answers, as a share of the longer one."""

    @classmethod
    def of(cls, first: Sequence[Said], second: Sequence[Said]) -> Agreement:
        pairs = list(zip(first, second, strict=True))
        return cls(fmean(a == b for a, b in pairs), fmean(common_share(a, b) for a, b in pairs))


def common_share(first: Said, second: Said) -> float:
    """Return the length of the common beginning as a share of the longer answer; 1 for two empty answers."""
    longest = max(len(first), len(second))
    common = next((place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    return 1.0 if not longest else (min(len(first), len(second)) if common is None else common) / longest


ALL = "all"


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    task: str
    metric: str
    scores: PairedScores
    agreement: Agreement


@dataclass(frozen=True)
class Comparison:
    first: str
    second: str
    lines: tuple[ComparisonRow, ...]
    """One row a task, and a last one over all questions if there are several tasks with the same metric."""
    unit: Literal["tokens", "characters"]
    """Unit in which answers are compared: characters where not all answers have token ids."""
    left_out: int
    """Questions that stand in one result alone; those that differ between the two count twice."""
    speeds: tuple[Speed | None, Speed | None]

    @classmethod
    def of(cls, first: EvalResult, second: EvalResult) -> Comparison:
        """Compare two results. Raises InvalidConfig when they have no question or a task has no metric in common."""
        common = [
            key for key, row in first.rows.items() if key in second.rows and second.rows[key].question == row.question
        ]
        if not common:
            raise InvalidConfig(f"{first.name} and {second.name} have no question in common: run the same tasks.")
        pairs = [(task, first.rows[task, row], second.rows[task, row]) for task, row in common]
        known = all(a.token_ids is not None and b.token_ids is not None for _, a, b in pairs)
        tasks = dict.fromkeys(task for task, _, _ in pairs)
        lines = [
            _line(first.aliases.get(task, task), [(a, b) for name, a, b in pairs if name == task], known)
            for task in tasks
        ]
        if len(lines) > 1 and len({line.metric for line in lines}) == 1:
            lines.append(_line(ALL, [(a, b) for _, a, b in pairs], known))
        left_out = len(first.rows) + len(second.rows) - 2 * len(common)
        unit: Literal["tokens", "characters"] = "tokens" if known else "characters"
        return cls(first.name, second.name, tuple(lines), unit, left_out, (first.speed, second.speed))

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _line(task: str, pairs: list[tuple[AnsweredQuestion, AnsweredQuestion]], known: bool) -> ComparisonRow:
    metric = next((name for name in pairs[0][0].scores if name in pairs[0][1].scores), None)
    if metric is None:
        raise InvalidConfig(f"{task} has no metric in common that is a number for each question.")
    scores = PairedScores.of([a.scores[metric] for a, _ in pairs], [b.scores[metric] for _, b in pairs])
    said = [[row.token_ids if known else row.answer for row in side] for side in zip(*pairs, strict=True)]
    return ComparisonRow(task, metric, scores, Agreement.of(*said))
