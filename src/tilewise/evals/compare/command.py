"""`tilewise eval compare`: two results, or two engines that are run first, as a table and as a picture."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig
from tilewise.evals.compare.comparison import Comparison, ComparisonRow, Mean
from tilewise.evals.compare.result import EvalResult, read_result
from tilewise.evals.output import as_json, check_writable, write_text
from tilewise.host import require_extra

if TYPE_CHECKING:
    from tilewise.evals.harness.run import EvalOptions


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
    first, second = comparison.speeds
    for name, speed in (("A", first), ("B", second)):
        if speed:
            stored = f", {speed.from_store} answers from the store" if speed.from_store else ""
            yield f"{name}: {speed.tokens} tokens in {speed.seconds:.1f} s, {speed.rate:.1f} tokens/s{stored}"
    if first and second and first.rate and second.rate:
        yield f"B makes {second.rate / first.rate:.2f} times as many tokens a second as A."


NORMAL_95 = 1.96
"""Standard errors on each side of a normally distributed estimate that make its 95 % interval."""


def draw(comparison: Comparison, file: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = comparison.lines[::-1]  # the first on top
    figure = Figure(figsize=(11, 1.8 + 0.42 * len(lines)), layout="constrained")
    FigureCanvasAgg(figure)
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


def compare_results(first: str, second: str, json_file: Path | None, plot: Path | None) -> int:
    check_outputs(json_file, plot)
    for path in (first, second):
        if not Path(path).exists():
            raise InvalidConfig(f"{path}: no such result. To run two engines first, name --tasks.")
    return show(read_result(Path(first)), read_result(Path(second)), json_file, plot)


def compare_engines(first: str, second: str, options: EvalOptions, json_file: Path | None, plot: Path | None) -> int:
    """Run two engines one after the other, so that each has the machine to itself, and compare their results."""
    from tilewise.evals.harness.run import evaluate

    check_outputs(json_file, plot)
    engines = {"a": read_engine(first), "b": read_engine(second)}
    for engine in engines.values():
        EngineConfig.of(**engine)
    with tempfile.TemporaryDirectory() as spare:
        folder = options.output_path or Path(spare)
        for name, engine in engines.items():
            evaluate(replace(options, engine=engine, output_path=folder / name))
        results = read_result(folder / "a", first), read_result(folder / "b", second)
    return show(*results, json_file, plot)


def check_outputs(json_file: Path | None, plot: Path | None) -> None:
    for file in (json_file, plot):
        check_writable(file.parent if file else None)
    if plot:
        require_extra("matplotlib", "plot", "A picture")


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


def show(first: EvalResult, second: EvalResult, json_file: Path | None, plot: Path | None) -> int:
    comparison, console = Comparison.of(first, second), Console(width=120)
    console.print(table(comparison))
    for line in summary_lines(comparison):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if json_file:
        write_text(json_file, as_json(comparison.as_dict()))
    if plot:
        draw(comparison, plot)
    return 0
