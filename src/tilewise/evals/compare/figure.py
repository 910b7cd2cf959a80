"""A comparison as a picture: scores of both, and their paired difference with the interval of 95 %."""

from __future__ import annotations

from pathlib import Path

from tilewise.evals.compare.comparison import Comparison

NORMAL_95 = 1.96
"""Standard errors on each side of a normal estimate that hold 95 %."""


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
