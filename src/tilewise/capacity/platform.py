"""Platforms to plan for: a device that is stated, and this machine's processor with a memory that is stated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from tilewise.errors import InvalidConfig
from tilewise.plan.request import Device
from tilewise.platforms import DeviceKind, current_platform
from tilewise.platforms.base import Capture, Diagnosis, Platform
from tilewise.platforms.cpu import CpuPlatform
from tilewise.platforms.cuda import GRAPH_SIZES
from tilewise.platforms.forms import Form, Grouped
from tilewise.platforms.ops import AttentionSize, Ops
from tilewise.platforms.weights import Use, Weight, plain_weight, rounded_to_int8, side_by_side

USUAL_SHARE = 0.92
"""Share of a device's memory that engines take unless told otherwise (vLLM's default)."""
_SCALE, _ZERO = 2, 1
"""Bytes of a group's scale and zero point."""


def platform_of(device: Device, kind: DeviceKind = "auto") -> Platform:
    """Return the platform of a device; on this machine, one of that kind. Raises InvalidConfig where it has none."""
    if not device.here:
        return StatedPlatform(device.memory)
    return StatedCpu(device.memory) if device.memory_stated else current_platform(kind)


class StatedCpu(CpuPlatform):
    """This machine's processor, with a stated amount of memory."""

    def __init__(self, memory: int) -> None:
        self._memory = memory

    def total_memory(self) -> int:
        return self._memory

    def free_memory(self) -> int:
        return self._memory


class StatedPlatform:
    """A device of which the memory alone is known. Attention is taken to keep no scores, as flash kernels do."""

    name = "stated"
    device = torch.device("meta")
    shared_memory = False
    backend = "gloo"
    beside_host = True
    tile_batches: tuple[int, ...] = (8, 4, 2, 1)
    utilization: float | None = USUAL_SHARE
    graph_sizes = GRAPH_SIZES
    resize_kernels: str | None = None

    def __init__(self, memory: int) -> None:
        self._memory = memory

    def ops(self, batch_invariant: bool = False) -> Ops:
        if batch_invariant:
            raise InvalidConfig("batch_invariant is for CPUs: plan with --devices cpu, or leave it out.")
        return StatedOps()

    def check_ranks(self, ranks: int) -> None:
        """Do nothing: the plan counts devices."""

    def streams(self) -> None:
        return None

    def capturer(self, ops: Ops) -> Capture:
        def capture(step: Callable[[], Tensor]) -> NoReturn:
            raise NotImplementedError("nothing is computed on a stated device")

        return capture

    def default_dtype(self, checkpoint: torch.dtype, parameters: int) -> torch.dtype:
        return checkpoint

    def diagnose(self) -> Diagnosis:
        return Diagnosis({}, ())

    def total_memory(self) -> int:
        return self._memory

    def free_memory(self) -> int:
        return self._memory


class StatedOps(Ops):
    """Ops that tell sizes and compute nothing."""

    def store(self, parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
        return side_by_side(parts, bias, _kept)

    def store_int8(self, parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
        return side_by_side([rounded_to_int8(part) for part in parts], bias, _kept)

    def paged_scratch(self, size: AttentionSize) -> int:
        return 0

    def dense_scratch(self, size: AttentionSize) -> int:
        return 0


def _kept(run: Sequence[Form], bias: Tensor | None) -> Weight:
    weight = plain_weight(run, bias)
    form = run[0]
    if not isinstance(form, Grouped):
        return weight
    return _Sized(sum(_grouped_bytes(part) for part in run if isinstance(part, Grouped)) + _nbytes(bias))


@dataclass(frozen=True, slots=True)
class _Sized:
    """A weight of which the size alone is known."""

    nbytes: int

    def apply(self, x: Tensor, ops: Ops) -> Tensor:
        raise NotImplementedError("nothing is computed on a stated device")


def _grouped_bytes(form: Grouped) -> int:
    """Return the bytes of codes with scales and zero points as files keep them."""
    zeros = 0 if form.shifts is None else form.shifts.numel() * _ZERO
    return form.codes.nbytes + form.scales.numel() * _SCALE + zeros + _nbytes(form.order)


def _nbytes(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.nbytes
