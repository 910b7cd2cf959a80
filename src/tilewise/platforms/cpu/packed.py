"""Packed weights: matrices in the order in which the CPU's own kernels read them, once at load.

A row's product is the same, bit by bit, whatever other rows there are: the kernels sum up in one order. Of codes in
groups there are two orders, of few rows and of many, unless one way for all is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tilewise.platforms.base import Ops
from tilewise.platforms.cpu.native.call import DTYPES
from tilewise.platforms.cpu.native.kernels import Native
from tilewise.platforms.cpu.native.matrices import GroupedLayout, MatrixKernels
from tilewise.platforms.forms import Grouped, Int8, StaticRows


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
    """What `Int8Weight` is, in panels; `totals` are sums of the weights of each output.

    `static` and `addend` are those of `forms.Int8`.
    """

    kernels: MatrixKernels
    panels: Tensor
    scales: Tensor
    totals: Tensor
    bias: Tensor | None
    static: StaticRows | None = None
    addend: Tensor | None = None

    @classmethod
    def of(cls, kernels: MatrixKernels, parts: Sequence[Tensor], bias: Tensor | None) -> PackedInt8Weight:
        return cls(kernels, *kernels.pack_int8(parts), bias)

    @property
    def nbytes(self) -> int:
        return self.panels.nbytes + self.scales.nbytes + self.totals.nbytes + _nbytes(self.bias) + _nbytes(self.addend)

    def apply(self, x: Tensor, ops: Ops, gelu: bool = False) -> Tensor:
        own = (self.panels, self.scales, self.totals, self.bias)
        return self.kernels.linear_int8(x.contiguous(), *own, gelu, self.static, self.addend)


@dataclass(frozen=True, slots=True)
class PackedGrouped:
    """Codes in groups, with rows of float32 or bfloat16; a bias has the dtype of the rows.

    The kernels read columns of x in the `order` of the codes: that is a copy of the rows that they make anyway, and a
    step can be captured with it.
    """

    kernels: MatrixKernels
    panels: Tensor
    layout: GroupedLayout
    order: Tensor | None
    bias: Tensor | None
    one_way: bool = False
    """A row's product does not depend on how many there are; many take longer."""

    @property
    def nbytes(self) -> int:
        return self.panels.nbytes + _nbytes(self.order) + _nbytes(self.bias)

    def apply(self, x: Tensor, ops: Ops, gelu: bool = False) -> Tensor:
        own = (self.panels, self.layout, self.order, self.bias)
        return self.kernels.linear_grouped(x.contiguous(), *own, gelu, self.one_way)


def packed(native: Native, parts: Sequence[Tensor], bias: Tensor | None) -> PackedWeight | None:
    """None if there is no kernel for it."""
    if "store" in native.left_out or parts[0].dtype not in DTYPES:
        return None
    return PackedWeight.of(native.matrices, parts, bias)


def packed_int8(native: Native, parts: Sequence[Tensor], bias: Tensor | None) -> PackedInt8Weight | None:
    if "store_int8" in native.left_out or parts[0].dtype not in DTYPES:
        return None
    return PackedInt8Weight.of(native.matrices, parts, bias)


def packed_levels(native: Native, form: Int8, bias: Tensor | None) -> PackedInt8Weight | None:
    """int8 as it was stored. None if there is no kernel for it."""
    if "store_levels" in native.left_out or (bias is not None and bias.dtype not in DTYPES):
        return None
    scales, addend = form.scales.contiguous(), None if form.addend is None else form.addend.contiguous()
    panels, totals = native.matrices.pack_levels(form.matrix)
    return PackedInt8Weight(native.matrices, panels, scales, totals, bias, form.static, addend)


def packed_grouped(native: Native, form: Grouped, bias: Tensor | None, one_way: bool = False) -> PackedGrouped | None:
    """None if there is no kernel for it. `one_way`: as `PackedGrouped` has it, for batch-invariant ops."""
    if "store_grouped" in native.left_out or (bias is not None and bias.dtype not in DTYPES):
        return None
    layout = GroupedLayout.of(form)
    order = None if form.order is None else form.order.contiguous()
    return PackedGrouped(native.matrices, native.matrices.pack_grouped(form, layout), layout, order, bias, one_way)


def _nbytes(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.nbytes
