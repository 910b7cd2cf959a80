"""Comparison: two results side by side, task by task and altogether."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from tilewise.errors import InvalidConfig
from tilewise.evals.compare.agreement import Agreement
from tilewise.evals.compare.paired import Paired
from tilewise.evals.compare.result import Result, Row, Speed

ALL = "all"


@dataclass(frozen=True, slots=True)
class Line:
    task: str
    metric: str
    scores: Paired
    agreement: Agreement


@dataclass(frozen=True)
class Comparison:
    first: str
    second: str
    lines: tuple[Line, ...]
    """One a task, and the last one over all questions if there are several tasks."""
    unit: Literal["tokens", "characters"]
    """In which answers are compared."""
    left_out: int
    """Questions that one result alone has."""
    speeds: tuple[Speed | None, Speed | None]

    @classmethod
    def of(cls, first: Result, second: Result) -> Comparison:
        """Raises InvalidConfig when no question is in both."""
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


def _line(task: str, pairs: list[tuple[Row, Row]], known: bool) -> Line:
    metric = next((name for name in pairs[0][0].scores if name in pairs[0][1].scores), None)
    if metric is None:
        raise InvalidConfig(f"{task} has no metric in common that is a number for each question.")
    scores = Paired.of([a.scores[metric] for a, _ in pairs], [b.scores[metric] for _, b in pairs])
    said = [[row.token_ids if known else row.answer for row in side] for side in zip(*pairs, strict=True)]
    return Line(task, metric, scores, Agreement.of(*said))
