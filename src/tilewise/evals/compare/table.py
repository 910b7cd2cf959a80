"""A comparison as a table."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from tilewise.evals.compare.comparison import Comparison, Line
from tilewise.evals.compare.paired import Mean


def table(comparison: Comparison) -> Table:
    drawn = Table(caption="B - A: paired difference, points. p: McNemar's exact test, two-sided. ±: standard error.")
    titles = ("task", "questions", "A, %", "B, %", "B - A", "only A / only B", "p", "same, %", "common beginning, %")
    for title in titles:
        drawn.add_column(title, justify="left" if title == "task" else "right", overflow="fold")
    for line in comparison.lines:
        drawn.add_row(*_cells(line), end_section=line is comparison.lines[-2:][0])
    return drawn


def _cells(line: Line) -> Iterator[str]:
    scores = line.scores
    yield from (line.task, str(scores.count), _mean(scores.first), _mean(scores.second))
    yield _mean(scores.difference, "+")
    yield f"{scores.only_first} / {scores.only_second}"
    yield "" if scores.p is None else f"{scores.p:.3f}"
    yield from (f"{100 * line.agreement.same:.1f}", f"{100 * line.agreement.prefix:.1f}")


def _mean(mean: Mean, sign: str = "") -> str:
    return f"{100 * mean.value:{sign}.1f} ± {100 * mean.error:.1f}"


def sentences(comparison: Comparison) -> Iterator[str]:
    """What the table does not say."""
    yield f"A: {comparison.first}\nB: {comparison.second}"
    yield f"Answers are compared in {comparison.unit}."
    if comparison.left_out:
        yield f"{comparison.left_out} questions are in one result alone, or not the same in both, and are left out."
    first, second = comparison.speeds
    for name, speed in (("A", first), ("B", second)):
        if speed:
            stored = f", {speed.from_store} answers from the store" if speed.from_store else ""
            yield f"{name}: {speed.tokens} tokens in {speed.seconds:.1f} s, {speed.rate:.1f} tokens/s{stored}"
    if first and second and first.rate and second.rate:
        yield f"B makes {second.rate / first.rate:.2f} times as many tokens a second as A."
