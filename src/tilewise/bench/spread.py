"""Spread: mean, median, deviation and percentiles of what was measured many times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tilewise.errors import InvalidConfig


@dataclass(frozen=True, slots=True)
class Spread:
    mean: float
    median: float
    deviation: float
    percentiles: tuple[tuple[float, float], ...]
    """(percent, value)"""

    @classmethod
    def of(cls, values: Sequence[float], percents: Sequence[float]) -> Spread:
        """Zeros where nothing was measured, as vLLM has it."""
        known = np.asarray(values if len(values) else [0.0])
        percentiles = tuple((percent, float(np.percentile(known, percent))) for percent in percents)
        return cls(float(known.mean()), float(np.median(known)), float(known.std()), percentiles)

    def scaled(self, factor: float) -> Spread:
        percentiles = tuple((percent, value * factor) for percent, value in self.percentiles)
        return Spread(self.mean * factor, self.median * factor, self.deviation * factor, percentiles)


def percent_name(percent: float) -> str:
    """As in a field's name.

    >>> percent_name(99.0), percent_name(99.9)
    ('99', '99.9')
    """
    return str(int(percent)) if percent == int(percent) else str(percent)


def read_percents(text: str) -> tuple[float, ...]:
    """`25,50,99.9` of --metric-percentiles. Raises InvalidConfig."""
    try:
        percents = tuple(float(item) for item in text.split(","))
    except ValueError:
        percents = ()
    if not percents or not all(0 <= percent <= 100 for percent in percents):
        raise InvalidConfig(f"--metric-percentiles takes numbers from 0 to 100, such as 50,99, got {text!r}.")
    return percents
