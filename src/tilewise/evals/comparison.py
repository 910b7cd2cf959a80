"""Comparison: two results side by side, task by task and altogether, with the statistics of paired scores."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from rich.table import Table

from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig
from tilewise.eval_options import CompareOptions, EvalOptions, TaskOptions
from tilewise.evals.results import (
    AnsweredQuestion,
    EvalResult,
    QuestionCounts,
    as_json,
    check_outputs,
    print_report,
    read_result,
    write_text,
)


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
    shorter, longer = sorted((len(first), len(second)))
    common = next((place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), shorter)
    return common / longer if longer else 1.0


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
    counts: tuple[QuestionCounts | None, QuestionCounts | None]

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
        return cls(first.name, second.name, tuple(lines), unit, left_out, (first.counts, second.counts))

    def as_json(self) -> dict[str, Any]:
        speeds = [
            counts and {"seconds": counts.seconds, "tokens": counts.completion_tokens, "from_store": counts.from_store}
            for counts in self.counts
        ]
        found = dataclasses.asdict(self) | {"speeds": speeds}
        del found["counts"]
        return found


def _line(task: str, pairs: list[tuple[AnsweredQuestion, AnsweredQuestion]], known: bool) -> ComparisonRow:
    metric = next((name for name in pairs[0][0].scores if name in pairs[0][1].scores), None)
    if metric is None:
        raise InvalidConfig(f"{task} has no metric in common that is a number for each question.")
    scores = PairedScores.of([a.scores[metric] for a, _ in pairs], [b.scores[metric] for _, b in pairs])
    said = [[row.token_ids if known else row.answer for row in side] for side in zip(*pairs, strict=True)]
    return ComparisonRow(task, metric, scores, Agreement.of(*said))


def table(comparison: Comparison) -> Table:
    drawn = Table(caption="B - A: paired difference, points. p: McNemar's exact test, two-sided. ±: standard error.")
    titles = ("task", "questions", "A, %", "B, %", "B - A", "only A / only B", "p", "same, %", "common beginning, %")
    for title in titles:
        drawn.add_column(title, justify="left" if title == "task" else "right", overflow="fold")
    for line in comparison.lines:
        drawn.add_row(*_cells(line), end_section=line is comparison.lines[-2:][0])
    return drawn


def _cells(line: ComparisonRow) -> Iterator[str]:
    scores = line.scores
    yield from (line.task, str(scores.count), _mean(scores.first), _mean(scores.second))
    yield _mean(scores.difference, "+")
    yield f"{scores.only_first} / {scores.only_second}"
    yield "" if scores.p is None else f"{scores.p:.3f}"
    yield from (f"{100 * line.agreement.same:.1f}", f"{100 * line.agreement.prefix:.1f}")


def _mean(mean: Mean, sign: str = "") -> str:
    return f"{100 * mean.value:{sign}.1f} ± {100 * mean.error:.1f}"


def summary_lines(comparison: Comparison) -> Iterator[str]:
    """Yield what the table does not say: names, the unit of comparison, questions that were left out, and speeds."""
    yield f"A: {comparison.first}\nB: {comparison.second}"
    yield f"Answers are compared in {comparison.unit}."
    if comparison.left_out:
        yield f"{comparison.left_out} questions are in one result alone, or not the same in both, and are left out."
    first, second = comparison.counts
    for name, counts in (("A", first), ("B", second)):
        if counts:
            stored = f", {counts.from_store} answers from the store" if counts.from_store else ""
            made = f"{counts.completion_tokens} tokens in {counts.seconds:.1f} s"
            yield f"{name}: {made}, {counts.rate:.1f} tokens/s{stored}"
    if first and second and first.rate and second.rate:
        yield f"B makes {second.rate / first.rate:.2f} times as many tokens a second as A."


NORMAL_95 = 1.96
"""Standard errors on each side of a normally distributed estimate that make its 95 % interval."""


def draw(comparison: Comparison, file: Path) -> None:
    from matplotlib.figure import Figure

    lines = comparison.lines[::-1]  # the first on top
    figure = Figure(figsize=(11, 1.8 + 0.42 * len(lines)), layout="constrained")
    scores, differences = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    places = range(len(lines))
    for name, side, shift, color in (("A", "first", 0.2, "#4477aa"), ("B", "second", -0.2, "#ee8866")):
        means = [getattr(line.scores, side) for line in lines]
        label = f"{name}: {getattr(comparison, side)}"
        widths, errors = [100 * mean.value for mean in means], [100 * mean.error for mean in means]
        scores.barh([place + shift for place in places], widths, 0.38, xerr=errors, color=color, label=label)
    means = [line.scores.difference for line in lines]
    whiskers = [100 * NORMAL_95 * mean.error for mean in means]
    differences.errorbar([100 * mean.value for mean in means], places, xerr=whiskers, fmt="o", color="black", capsize=3)
    differences.axvline(0, color="gray", linewidth=0.8)
    scores.set_yticks(list(places), [f"{line.task} ({line.scores.count})" for line in lines])
    scores.set_xlabel("score, %, ± standard error")
    differences.set_xlabel("B - A, points, 95 % interval")
    figure.legend(loc="outside upper center", ncols=1, frameon=False)
    figure.savefig(file, dpi=120)


def compare(options: CompareOptions, questions: TaskOptions) -> None:
    """Compare two results, or those of two engines that are run first, and write what is asked for."""
    check_outputs(options.json, plot=options.plot)
    comparison = Comparison.of(*(_run_both(options, questions) if options.tasks else _read_both(options)))
    print_report(table(comparison), summary_lines(comparison))
    if options.json:
        write_text(options.json, as_json(comparison.as_json()))
    if options.plot:
        draw(comparison, options.plot)


def _read_both(options: CompareOptions) -> Sequence[EvalResult]:
    for path in (options.first, options.second):
        if not Path(path).exists():
            raise InvalidConfig(f"{path}: no such result. To run two engines first, name --tasks.")
    return [read_result(Path(path)) for path in (options.first, options.second)]


def _run_both(options: CompareOptions, questions: TaskOptions) -> Sequence[EvalResult]:
    """Run two engines one after the other, so that each has the machine to itself."""
    from tilewise.evals.run import evaluate

    engines = {"a": read_engine(options.first), "b": read_engine(options.second)}
    for engine in engines.values():
        EngineConfig.of(**engine)
    with tempfile.TemporaryDirectory() as spare:
        folder = options.output_path or Path(spare)
        for name, engine in engines.items():
            evaluate(EvalOptions(tasks=options.tasks, output_path=folder / name), questions, **engine)
        return [read_result(folder / "a", options.first), read_result(folder / "b", options.second)]


def read_engine(text: str) -> dict[str, Any]:
    """Read an engine's options from `MODEL` or `MODEL,option=value,...`; values that are not JSON are texts."""
    model, *pairs = text.split(",")
    options: dict[str, Any] = {"model": model}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InvalidConfig(f"{text!r}: {pair!r} is no option=value; an engine is MODEL,option=value,...")
        try:
            options[name.strip().replace("-", "_")] = json.loads(value)
        except ValueError:
            options[name.strip().replace("-", "_")] = value
    return options
