"""How much of the time a device has nothing to do, and what it does in the rest."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from types import TracebackType
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from tilewise import LLM

_SHOWN = 25
"""Kernels of a table."""


def local(runner: Any) -> Any:
    """The runner that computes, whatever runs it in the background."""
    while not hasattr(runner, "_model"):
        runner = runner._runner
    return runner


class StepTimes:
    """Moments of the device before and behind each step, while this is entered.

    What the device waits for within a step counts as busy here: launches that come too late show in `Trace`.
    """

    def __init__(self, llm: LLM) -> None:
        self._runner = local(llm._core._runner)  # type: ignore[union-attr]
        self._gpu = self._runner._tables.device.type == "cuda"
        self._moments: list[tuple[Any, Any]] = []

    def __enter__(self) -> StepTimes:
        launch = self._runner.launch

        def timed(plan: Any) -> Any:
            before = self._moment()
            launched = launch(plan)
            self._moments.append((before, self._moment()))
            return launched

        self._runner.launch = timed
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        del self._runner.launch

    def idle(self, last: int, but: int) -> float:
        """Share of the time of the `last` steps, but for so many at the end."""
        if self._gpu:
            torch.cuda.synchronize()
        steps = self._moments[-last - but : -but]
        busy = sum(self._between(before, behind) for before, behind in steps)
        return max(0.0, 1 - busy / self._between(steps[0][0], steps[-1][1]))

    def _moment(self) -> Any:
        if not self._gpu:
            return time.perf_counter()
        with self._runner._stream():
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        return event

    def _between(self, first: Any, second: Any) -> float:
        """Milliseconds of a GPU, seconds of a CPU."""
        return float(first.elapsed_time(second)) if self._gpu else float(second - first)


class Trace:
    """torch's profiler between `begin` and `end`, each of which counts the first time that it is called.

    Tracing itself takes time on the host, so that `idle` is more than it is without.
    """

    def __init__(self, gpu: bool) -> None:
        self._kind = DeviceType.CUDA if gpu else DeviceType.CPU
        self._profile = profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU])
        self._state = "new"
        self._kernels: list[tuple[str, float, float]] = []

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()

    def begin(self) -> None:
        if self._state == "new":
            self._profile.__enter__()
            self._state = "begun"

    def end(self) -> None:
        if self._state != "begun":
            return
        self._state = "ended"
        if self._kind == DeviceType.CUDA:
            torch.cuda.synchronize()
        self._profile.__exit__(None, None, None)
        found = self._profile.events() or []
        self._kernels = sorted(
            ((event.name, event.time_range.start, event.time_range.end)
             for event in found if event.device_type == self._kind and not event.is_user_annotation),
            key=lambda kernel: kernel[1],
        )  # fmt: skip

    @property
    def idle(self) -> float:
        """Share of the time from the first kernel to the last in which none ran."""
        if not self._kernels:
            raise RuntimeError("The profiler saw no kernels: it may not use the counters of this device.")
        busy, until = 0.0, self._kernels[0][1]
        for _, start, stop in self._kernels:
            busy += max(0.0, stop - max(start, until))
            until = max(until, stop)
        whole = until - self._kernels[0][1]
        return 1 - busy / whole if whole else 0.0

    def table(self) -> str:
        """Kernels that took the most, with their calls and milliseconds."""
        spent: dict[str, list[float]] = defaultdict(list)
        for name, start, stop in self._kernels:
            spent[name].append(stop - start)
        whole = sum(itertools.chain.from_iterable(spent.values()))
        ordered = sorted(spent.items(), key=lambda pair: -sum(pair[1]))[:_SHOWN]
        lines = [f"{sum(each) / 1000:9.3f} ms {len(each):6} x  {name[:90]}" for name, each in ordered]
        return "\n".join([*lines, f"{whole / 1000:9.3f} ms in all"])
