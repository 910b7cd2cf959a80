"""FallbackOps: ops of a device whose kernels may fail; torch computes in the place of one that did."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from tilewise.platforms.draw import DEVICE_ROWS
from tilewise.platforms.ops import TorchOps
from tilewise.platforms.weights import Weight

logger = logging.getLogger("tilewise")

P = ParamSpec("P")
Result = TypeVar("Result")
Table = TypeVar("Table")
Together = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Rows x [N, H], their chosen experts int64 [N, k] and weights [N, k] -> `Ops.moe_experts`."""


class FallbackOps(TorchOps):
    """Ops that try a kernel of the device first. One that cannot be compiled or launched is not tried again: torch
    computes instead, and the log says so once.
    """

    kernels: str
    """The name of the kernels in the log."""
    drawn_at_once = DEVICE_ROWS

    def __init__(self) -> None:
        self.left_out: dict[str, str] = {}
        """Reasons why kernels are not used, by op."""

    def moe_experts(
        self,
        x: Tensor,
        chosen: Tensor,
        weights: Tensor,
        gate_up: Sequence[Weight | None],
        down: Sequence[Weight | None],
        activation: Callable[[Tensor], Tensor],
    ) -> Tensor:
        instead, together = super().moe_experts, self._together(x, gate_up, down, activation)
        if together is None:
            return instead(x, chosen, weights, gate_up, down, activation)

        def moe_experts(*_: object) -> Tensor:
            return together(x, chosen, weights)

        return self.attempt(moe_experts, instead, x, chosen, weights, gate_up, down, activation)

    def _together(
        self,
        x: Tensor,
        gate_up: Sequence[Weight | None],
        down: Sequence[Weight | None],
        activation: Callable[[Tensor], Tensor],
    ) -> Together | None:
        """Return a function that multiplies a layer's experts together; None where there is none for these."""
        return None

    def attempt(
        self, kernel: Callable[..., Result], instead: Callable[..., Result], *args: Any, **named: Any
    ) -> Result:
        """Call the kernel, or where it is left out or fails, torch's op `instead`, whose name stands for both."""
        op = instead.__name__
        if op in self.left_out:
            return instead(*args, **named)
        try:
            return kernel(*args, **named)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers and drivers have a dozen, without a common name
            if "out of memory" in str(error):
                raise
            self.left_out[op] = (str(error).strip().splitlines() or [type(error).__name__])[0]
            logger.warning("%s: %s is left to torch, as ours fails: %s", self.kernels, op, self.left_out[op])
            return instead(*args, **named)


def by_kernel(kernel: Callable[P, Result]) -> Callable[Concatenate[Any, P], Result]:
    """Return a method of a `FallbackOps` that a kernel computes, or where that cannot, torch's op of the same name."""

    def op(self: FallbackOps, /, *args: P.args, **named: P.kwargs) -> Result:
        instead: Callable[..., Result] = getattr(TorchOps, kernel.__name__).__get__(self)
        return self.attempt(kernel, instead, *args, **named)

    return op


class ExpertTables(Generic[Table]):
    """The tables of all sequences of experts that were seen, each built when it first comes.

    Building one may wait for the device, so a step has to run once before it is captured. Sequences are known by their
    `id`, and kept alive so that no other gets it; their weights may be exchanged, so they are compared each time.
    """

    def __init__(self, build: Callable[[Sequence[Weight | None]], Table | None]) -> None:
        """`build` returns None for experts that kernels cannot multiply together."""
        self._build = build
        self._found: dict[int, tuple[Sequence[Weight | None], tuple[Weight | None, ...], Table | None]] = {}

    def of(self, weights: Sequence[Weight | None]) -> Table | None:
        found = self._found.get(id(weights))
        if found is None or len(found[1]) != len(weights) or any(map(operator.is_not, found[1], weights)):
            found = self._found[id(weights)] = weights, tuple(weights), self._build(weights)
        return found[2]
