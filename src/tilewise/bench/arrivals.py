"""Arrivals: when each request of a run is sent.

Gaps are drawn from a gamma distribution, as vLLM draws them: a burstiness of 1 is a Poisson process, less comes in
bursts, more comes evenly. At a constant rate the gaps are scaled to last `count / rate` seconds together, so that
runs of different seeds send equally fast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np

from tilewise.errors import InvalidConfig


@dataclass(frozen=True, slots=True)
class Ramp:
    """From one rate to another, request by request."""

    strategy: Literal["linear", "exponential"]
    start: float
    end: float

    def __post_init__(self) -> None:
        if not 0 < self.start <= self.end:
            raise InvalidConfig(
                f"--ramp-up-start-rps {self.start:g} and --ramp-up-end-rps {self.end:g}: need 0 < start <= end."
            )

    def rate(self, progress: float) -> float:
        """`progress` goes from 0, the first request, to 1, the last."""
        if self.strategy == "linear":
            return self.start + (self.end - self.start) * progress
        return float(self.start * (self.end / self.start) ** progress)


@dataclass(frozen=True, slots=True)
class Arrivals:
    rate: float = math.inf
    """Requests a second; inf = all at once."""
    burstiness: float = 1.0
    ramp: Ramp | None = None

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise InvalidConfig(f"--request-rate must be above 0, got {self.rate:g}: inf sends all at once.")
        if not self.burstiness > 0:
            raise InvalidConfig(f"--burstiness must be above 0, got {self.burstiness:g}: 1 is a Poisson process.")
        if self.ramp and self.rate != math.inf:
            raise InvalidConfig("--request-rate and --ramp-up-strategy exclude each other: the ramp has its own rates.")

    def moments(self, count: int, seed: int) -> list[float]:
        """Seconds from the start of the run to each of `count` requests."""
        generator = np.random.default_rng(seed)
        times = list(accumulate(self._gap(self._rate(place, count), generator) for place in range(count)))
        if self.ramp or not times or times[-1] == 0:
            return times
        scale = count / self.rate / times[-1]
        return [moment * scale for moment in times]

    def _rate(self, place: int, count: int) -> float:
        return self.ramp.rate(place / max(count - 1, 1)) if self.ramp else self.rate

    def _gap(self, rate: float, generator: np.random.Generator) -> float:
        if math.isinf(rate):
            return 0.0
        if math.isinf(self.burstiness):
            return 1 / rate
        return float(generator.gamma(self.burstiness, 1 / (rate * self.burstiness)))
