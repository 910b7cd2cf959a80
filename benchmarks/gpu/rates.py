"""The card itself: what it reads and writes a second, and how fast it multiplies. Part "card"."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from benchmarks.gpu.items import Item
from benchmarks.gpu.rows import Figure, Note, Row
from benchmarks.gpu.setup import Setup
from benchmarks.gpu.timer import Timer
from torch import Tensor

from tilewise.plan.request import Device

COPY, READ = "copy", "read"
BFLOAT16, INT8, FP8 = "bfloat16 product", "int8 product", "fp8 product"


def items(setup: Setup) -> Iterator[Item]:
    timer = Timer(setup.platform().device)
    yield Item("machine", partial(_machine, setup))
    products = {BFLOAT16: _bfloat16, INT8: _int8, FP8: _fp8}
    yield Item(COPY, partial(_copy, setup, timer))
    yield Item(READ, partial(_read, setup, timer))
    for name, make in products.items():
        yield Item(name, partial(_product, setup, timer, name, make))


def _machine(setup: Setup) -> Iterator[Row]:
    found = setup.platform().diagnose()
    yield Note("machine", "; ".join(f"{name} {fact}" for name, fact in found.facts.items()))
    yield Note("ops", "; ".join(f"{choice.op} {choice.path}" for choice in found.choices))


def _copy(setup: Setup, timer: Timer) -> Iterator[Row]:
    """Bytes read and bytes written, together."""
    source = torch.empty(setup.sized(4 * 2**30, 2**24), dtype=torch.uint8, device=setup.platform().device).fill_(1)
    target = torch.empty_like(source)
    yield Figure(COPY, 2 * source.nbytes / timer.seconds(lambda: target.copy_(source)) / 1e9, "GB/s")


def _read(setup: Setup, timer: Timer) -> Iterator[Row]:
    source = torch.ones(setup.sized(2**30, 2**22), device=setup.platform().device)
    yield Figure(READ, source.nbytes / timer.seconds(lambda: source.sum()) / 1e9, "GB/s")


def _product(
    setup: Setup, timer: Timer, name: str, make: Callable[[Tensor, Tensor], Callable[[], Any]]
) -> Iterator[Row]:
    size = setup.sized(8192, 64)
    left, right = (torch.randn(size, size, generator=setup.generator(name + side), device=setup.platform().device)
                   for side in "lr")  # fmt: skip
    yield Figure(name, 2 * size**3 / timer.seconds(make(left, right)) / 1e12, "TFLOP/s")


def _bfloat16(left: Tensor, right: Tensor) -> Callable[[], Any]:
    left, right = left.bfloat16(), right.bfloat16()
    return lambda: left @ right


def _int8(left: Tensor, right: Tensor) -> Callable[[], Any]:
    left, right = ((32 * x).clamp(-127, 127).to(torch.int8) for x in (left, right))
    return lambda: torch._int_mm(left, right.T)


def _fp8(left: Tensor, right: Tensor) -> Callable[[], Any]:
    left, right = left.to(torch.float8_e4m3fn), right.to(torch.float8_e4m3fn)
    one = torch.ones((), device=left.device)
    return lambda: torch._scaled_mm(left, right.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)


def device_of(rows: Sequence[dict[str, Any]]) -> Device | None:
    """What was measured, as floors are computed with it; the larger of copying and reading is the bandwidth."""
    found = {row["what"]: row["value"] for row in rows if row["kind"] == "figure"}
    bandwidths = [found[name] for name in (COPY, READ) if name in found]
    if not bandwidths or BFLOAT16 not in found:
        return None
    int8 = found.get(INT8)
    return Device("measured", 0, 1e9 * max(bandwidths), 1e12 * found[BFLOAT16], None if int8 is None else 1e12 * int8)
