"""Packed weights: matrices in the order in which the CPU's own kernels read them, once at load.

A row's product is the same, bit by bit, whatever other rows there are: the kernels sum up in one order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tilewise.platforms.base import Ops
from tilewise.platforms.cpu.native.call import DTYPES
from tilewise.platforms.cpu.native.kernels import Native
from tilewise.platforms.cpu.native.matrices import MatrixKernels


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


def packed(native: Native, parts: Sequence[Tensor], bias: Tensor | None) -> PackedWeight | None:
    """None if there is no kernel for it."""
    if "store" in native.left_out or parts[0].dtype not in DTYPES:
        return None
    return PackedWeight.of(native.matrices, parts, bias)


def packed_int8(native: Native, parts: Sequence[Tensor], bias: Tensor | None) -> PackedInt8Weight | None:
    if "store_int8" in native.left_out or parts[0].dtype not in DTYPES:
        return None
    return PackedInt8Weight.of(native.matrices, parts, bias)


def _nbytes(bias: Tensor | None) -> int:
    return 0 if bias is None else bias.nbytes
