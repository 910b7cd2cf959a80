"""Case: one op on fresh inputs, and what is compared with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from benchmarks.gpu.rows import Check
from benchmarks.gpu.timer import Timer
from torch import Tensor

from tilewise.plan.floors import StageWork
from tilewise.platforms.forms import Dense
from tilewise.platforms.kv_cache import LayerCache, QuantisedCache
from tilewise.platforms.ops import Ops, TorchOps

Call = Callable[[], Any]
DTYPE = torch.bfloat16
"""Activations, and weights in floats, have this dtype."""
_FEW = 0.02
"""Share of token ids that may differ: rounding decides between near ties."""


class Noise:
    """Fresh random tensors on a device."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator, self.device = generator, generator.device

    def __call__(self, *shape: int, dtype: torch.dtype = DTYPE) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device).to(dtype)


@dataclass(frozen=True)
class Case:
    name: str
    """The op, the model whose shape it has, and its size."""
    inputs: Callable[[Noise], SimpleNamespace]
    prepare: Callable[[Ops, SimpleNamespace], Call]
    """It does once what is done once, such as storing a weight; the call may be repeated, and returns tensors."""
    work: Callable[[SimpleNamespace], StageWork]
    torch_way: Callable[[SimpleNamespace], Call] | None = None
    """How torch alone does it; None = as an engine without kernels of ours (`TorchOps`)."""
    also: Callable[[SimpleNamespace, Any], Any] = lambda given, result: ()
    """It picks, from inputs and result, a part that is compared for itself, as a difference weighs more in it."""

    def check(self, ops: Ops, noise: Noise, timer: Timer) -> Check:
        given = self.inputs(noise)
        call = self.prepare(ops, given)
        found = self._numbers(given, call)
        expected = self._numbers(given, self.prepare(Ops(), given))
        truth = self._numbers(given, self.prepare(Ops(), widened(given)))
        verdict = compared(found, expected, truth)
        del expected, truth, found
        us = 1e6 * timer.seconds(call)
        try:
            other = self.torch_way(given) if self.torch_way else self.prepare(TorchOps(), given)
            torch_us = 1e6 * timer.seconds(other, most=5)
        except (RuntimeError, NotImplementedError, AttributeError):  # torch need not be able to
            torch_us = None
        return replace(verdict, what=self.name, us=us, torch_us=torch_us, work=self.work(given))

    def _numbers(self, given: SimpleNamespace, call: Call) -> list[Tensor]:
        result = call()
        return numbers((result, self.also(given, result)))


def compared(found: Sequence[Tensor], expected: Sequence[Tensor], truth: Sequence[Tensor]) -> Check:
    """An op is right if it is not much farther from the numbers in float32 than the reference is: at most twice as far
    and one rounding of the largest number, and on average a quarter farther and one rounding of the average number. Its
    own rounding may differ from the reference's at every place.
    """
    if not found[0].is_floating_point():
        different = sum(int((ours != theirs).sum()) for ours, theirs in zip(found, expected, strict=True))
        few = different <= _FEW * sum(map(torch.numel, expected))
        return Check("", few, float(different), 0.0, 0.0, 0.0, 0.0, None, StageWork())
    worst = relative = error = reference_error = 0.0
    passes = True
    for ours, theirs, exact in zip(found, expected, truth, strict=True):
        if not exact.numel():
            continue
        rounding, largest = torch.finfo(theirs.dtype).eps, float(exact.abs().max())
        ours, theirs = ours.float(), theirs.float()
        apart = (ours - theirs).abs()
        one, other = float((ours - exact).abs().max()), float((theirs - exact).abs().max())
        passes &= bool(ours.isfinite().all()) and one <= 2 * other + rounding * largest
        average, usual = (float((x - exact).abs().mean()) for x in (ours, theirs))
        passes &= average <= 1.25 * usual + rounding * float(exact.abs().mean())
        worst = max(worst, float(apart.max()))
        relative = max(relative, float((apart / theirs.abs().clamp(min=max(largest / 100, 1e-30))).max()))
        error, reference_error = max(error, one), max(reference_error, other)
    return Check("", passes, worst, relative, error, reference_error, 0.0, None, StageWork())


def numbers(result: Any) -> list[Tensor]:
    """Copies the tensors that a call returned, as they are at this moment."""
    match result:
        case Tensor():
            return [result.clone()]
        case QuantisedCache(levels, scales):
            return [levels.float() * scales.unsqueeze(-1)]
        case _:
            return [tensor for part in result for tensor in numbers(part)]


def widened(value: Any) -> Any:
    """Gives inputs as float32 where they are floats of the model, and others as they are."""
    match value:
        case Tensor():
            return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
        case SimpleNamespace():
            return SimpleNamespace(**{name: widened(item) for name, item in vars(value).items()})
        case Dense(matrix):
            return Dense(matrix.float())
        case list() | tuple():
            return type(value)(map(widened, value)) if not hasattr(value, "_fields") else value
        case _:
            return value


def copied(cache: LayerCache) -> LayerCache:
    """A cache that may be written to."""
    return cache.clone() if isinstance(cache, Tensor) else QuantisedCache(cache.numbers.clone(), cache.scales.clone())


def bytes_of(*values: Any) -> int:
    """Adds up the bytes of all tensors in the inputs."""
    total = 0
    for value in values:
        if isinstance(value, Tensor):
            total += value.nbytes
        elif isinstance(value, (list, tuple)):
            total += bytes_of(*value)
        elif is_dataclass(value):
            total += bytes_of(*(getattr(value, field.name) for field in fields(value)))
    return total
