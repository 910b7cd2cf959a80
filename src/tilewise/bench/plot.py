"""Latency against load, as a picture: a point for each run, medians and the slowest percentile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tilewise.bench.figures import Figures
from tilewise.bench.load import Load
from tilewise.bench.saving import NotSaved
from tilewise.bench.spread import percent_name

Runs = Sequence[tuple[Load, Figures]]
_PANELS = (("ttft", "time to first token, ms"), ("tpot", "time per output token, ms"), ("e2el", "whole answer, ms"))


def draw(runs: Runs, model: str, path: Path) -> None:
    """Raises NotSaved."""
    from matplotlib.figure import Figure

    label, loads = x_axis(runs)
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels: Any = figure.subplots(1, len(_PANELS) + 1)
    for axes, (name, title) in zip(panels, _PANELS, strict=False):
        _panel(axes, runs, loads, name)
        axes.set(xlabel=label, ylabel=title, ylim=(0, None))
        axes.legend()
    panels[-1].plot(loads, [figures.output_throughput for _, figures in runs], marker="o")
    panels[-1].set(xlabel=label, ylabel="output tokens a second", ylim=(0, None))
    figure.suptitle(f"{model}, {runs[0][1].completed + runs[0][1].failed} requests a point")
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise NotSaved(f"The picture could not be saved in {path}: {error.strerror or error}.") from None


def x_axis(runs: Runs) -> tuple[str, list[float]]:
    """What the loads differ in: rates where all are finite, else limits of concurrency, else what was reached."""
    rates = [load.arrivals.rate for load, _ in runs]
    limits = [load.concurrency for load, _ in runs]
    if len(set(rates)) > 1 and not any(map(math.isinf, rates)):
        return "requests a second", rates
    if all(limit is not None for limit in limits) and len(set(limits)) > 1:
        return "requests at once, at most", [float(limit or 0) for limit in limits]
    return "requests a second, answered", [figures.request_throughput for _, figures in runs]


def _panel(axes: Any, runs: Runs, loads: Sequence[float], name: str) -> None:
    spreads = [figures.spreads[name] for _, figures in runs]
    axes.plot(loads, [spread.median for spread in spreads], marker="o", label="median")
    if spreads[0].percentiles:
        percent = spreads[0].percentiles[-1][0]
        last = [spread.percentiles[-1][1] for spread in spreads]
        axes.plot(loads, last, marker="o", linestyle="--", label=f"P{percent_name(percent)}")
