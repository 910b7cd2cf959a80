"""Packed weights: matrices in the order in which the CPU's own kernels read them, once at load.

A row's product is the same, bit by bit, whatever other rows there are: the kernels sum up in one order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from tilewise.platforms.base import Ops, Weight
from tilewise.platforms.cpu.native.call import DTYPES
from tilewise.platforms.cpu.native.kernels import Native
from tilewise.platforms.cpu.native.matrices import MatrixKernels
from tilewise.platforms.forms import Dense, Form
from tilewise.platforms.weights import plain_weight, rounded_to_int8


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """float32 or bfloat16, with rows of the same."""

    kernels: MatrixKernels
    panels: Tensor
    bias: Tensor | None
    outputs: int

    @classmethod
    def of(cls, kernels: MatrixKernels, parts: Sequence[Tensor], bias: Tensor | None) -> PackedWeight:
        return cls(kernels, kernels.pack(parts), bias, sum(map(len, parts)))

    @property
    def nbytes(self) -> int:
        return self.panels.nbytes + _nbytes(self.bias)

    def apply(self, x: Tensor, ops: Ops, gelu: bool = False) -> Tensor:
        assert x.dtype == self.panels.dtype
        return self.kernels.linear(x.contiguous(), self.panels, self.bias, self.outputs, gelu)


@dataclass(frozen=True, slots=True)
class PackedInt8Weight:
    """What `Int8Weight` is, in panels; `totals` are sums of the weights of each output."""

    kernels: MatrixKernels
    panels: Tensor
    scales: Tensor
    totals: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, kernels: MatrixKernels, parts: Sequence[Tensor], bias: Tensor | None) -> PackedInt8Weight:
        return cls(kernels, *kernels.pack_int8(parts), bias)

    @property
    def nbytes(self) -> int:
        return self.panels.nbytes + self.scales.nbytes + self.totals.nbytes + _nbytes(self.bias)

    def apply(self, x: Tensor, ops: Ops, gelu: bool = False) -> Tensor:
        return self.kernels.linear_int8(x.contiguous(), self.panels, self.scales, self.totals, self.bias, gelu)


def packed(native: Native, run: Sequence[Form], bias: Tensor | None) -> Weight | None:
    """Forms that are kept alike as one weight. None if there is no kernel for it."""
    matrices = [form.matrix for form in run if isinstance(form, Dense)]
    if not matrices or "store" in native.left_out or matrices[0].dtype not in DTYPES:
        return None
    return PackedWeight.of(native.matrices, matrices, bias)


def packed_int8(native: Native, run: Sequence[Form], bias: Tensor | None) -> Weight | None:
    """The same of floats that are rounded to int8."""
    matrices = [form.matrix for form in run if isinstance(form, Dense)]
    if not matrices or "store_int8" in native.left_out or matrices[0].dtype not in DTYPES:
        return None
    return PackedInt8Weight.of(native.matrices, matrices, bias)


def keeper(native: Native | None, int8: bool = False) -> Callable[[Sequence[Form], Tensor | None], Weight]:
    """What keeps a run of forms: packed where there is a kernel for it, else in plain torch."""

    def keep(run: Sequence[Form], bias: Tensor | None) -> Weight:
        ours = None
        if native is not None:
            ours = (packed_int8(native, run, bias) if int8 else None) or packed(native, run, bias)
        return ours or plain_weight([rounded_to_int8(form) for form in run] if int8 else run, bias)

    return keep


def _nbytes(bias: Tensor | None) -> int:
    return 0 if bias is None else bias.nbytes
