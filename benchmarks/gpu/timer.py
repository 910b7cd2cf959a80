"""Timer: how long a device computes for one call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

_FLUSH = 256 * 2**20
"""Bytes that are written before each call, more than any second-level cache holds: weights come from memory, then."""
_AHEAD = 2_000_000
"""Cycles that a GPU sleeps at first, about a millisecond, in which the host runs ahead with its launches."""
_SPENT = 0.03
"""Seconds of calls that are measured, at least."""
_MOST, _FEWEST = 30, 5
_LONG = 0.2
"""Seconds of a call that is measured once."""


class Timer:
    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._flush = torch.empty(_FLUSH, dtype=torch.uint8, device=device) if self._gpu else None

    def seconds(self, call: Callable[[], Any], most: int = _MOST) -> float:
        """The median of some calls; the first ones, which compile, do not count."""
        call()
        once = self._once(call)
        if once > _LONG:
            return once
        count = min(most, max(_FEWEST, int(_SPENT / max(once, 1e-6))))
        return self._on_gpu(call, count) if self._gpu else statistics.median(self._once(call) for _ in range(count))

    def _once(self, call: Callable[[], Any]) -> float:
        if self._gpu:
            torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        if self._gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def _on_gpu(self, call: Callable[[], Any], count: int) -> float:
        """By events around each call. A call that waits for the device itself is measured with its waits."""
        assert self._flush is not None
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        torch.cuda._sleep(_AHEAD)
        for before, behind in events:
            self._flush.zero_()
            before.record()
            call()
            behind.record()
        torch.cuda.synchronize()
        spent: list[float] = [before.elapsed_time(behind) for before, behind in events]
        return statistics.median(spent) / 1000
