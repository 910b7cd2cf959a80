"""Packed weights: matrices in the order in which the CPU's own kernels read them, put so once at load.

A row's product is the same, bit by bit, whatever other rows there are: the kernels sum up in one order. With codes in
groups there are two orders, for few rows and for many, unless `one_way` asks for one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from tilewise.platforms.base import Ops, Weight
from tilewise.platforms.cpu.native.kernels import Native
from tilewise.platforms.cpu.native.library import DTYPES
from tilewise.platforms.cpu.native.matrices import GroupedLayout, MatrixKernels
from tilewise.platforms.forms import Dense, Form, Grouped, Int8, StaticRows, joined
from tilewise.platforms.weights import plain_weight, rounded_to_int8


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A matrix of float32 or bfloat16 in panels, which multiplies rows of the same dtype."""

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
    """An `Int8Weight` in panels; `totals` are sums of the weights of each output.

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
        if x.dtype not in DTYPES:
            return self.apply(x.float(), ops, gelu).to(x.dtype)
        own = (self.panels, self.scales, self.totals, self.bias)
        return self.kernels.linear_int8(x.contiguous(), *own, gelu, self.static, self.addend)


@dataclass(frozen=True, slots=True)
class PackedGrouped:
    """A matrix of codes in groups, which multiplies rows of float32 or bfloat16; a bias has the dtype of the rows.

    The kernels read columns of x in the `order` of the codes: that is a copy of the rows that they make anyway, and a
    step can be captured with it.
    """

    kernels: MatrixKernels
    panels: Tensor
    layout: GroupedLayout
    order: Tensor | None
    bias: Tensor | None
    one_way: bool = False
    """True if a row's product must not depend on how many rows there are; many take longer then."""

    @property
    def nbytes(self) -> int:
        return self.panels.nbytes + _nbytes(self.order) + _nbytes(self.bias)

    def apply(self, x: Tensor, ops: Ops, gelu: bool = False) -> Tensor:
        if x.dtype not in DTYPES:
            return self.apply(x.float(), ops, gelu).to(x.dtype)
        own = (self.panels, self.layout, self.order, self.bias)
        return self.kernels.linear_grouped(x.contiguous(), *own, gelu, self.one_way)


def packed(native: Native, run: Sequence[Form], bias: Tensor | None) -> Weight | None:
    """Pack floats that are kept alike as one weight; return None for other forms, or if there is no kernel for it."""
    matrices = [form.matrix for form in run if isinstance(form, Dense)]
    if not matrices or "store" in native.left_out or matrices[0].dtype not in DTYPES:
        return None
    return PackedWeight.of(native.matrices, matrices, bias)


def packed_int8(native: Native, run: Sequence[Form], bias: Tensor | None) -> Weight | None:
    """Round floats to int8 and pack them; return None for other forms, or if there is no kernel for it."""
    matrices = [form.matrix for form in run if isinstance(form, Dense)]
    if not matrices or "store_int8" in native.left_out or matrices[0].dtype not in DTYPES:
        return None
    return PackedInt8Weight.of(native.matrices, matrices, bias)


def packed_levels(native: Native, form: Int8, bias: Tensor | None) -> PackedInt8Weight | None:
    """Pack int8 as it was stored; return None if there is no kernel for it."""
    if "store_levels" in native.left_out or (bias is not None and bias.dtype not in DTYPES):
        return None
    scales, addend = form.scales.contiguous(), None if form.addend is None else form.addend.contiguous()
    panels, totals = native.matrices.pack_levels(form.matrix)
    return PackedInt8Weight(native.matrices, panels, scales, totals, bias, form.static, addend)


def packed_grouped(native: Native, form: Grouped, bias: Tensor | None, one_way: bool = False) -> PackedGrouped | None:
    """Pack codes in groups; return None if there is no kernel for it. `one_way` is that of `PackedGrouped`."""
    if "store_grouped" in native.left_out or (bias is not None and bias.dtype not in DTYPES):
        return None
    layout = GroupedLayout.of(form)
    order = None if form.order is None else form.order.contiguous()
    return PackedGrouped(native.matrices, native.matrices.pack_grouped(form, layout), layout, order, bias, one_way)


def keeper(
    native: Native | None, int8: bool = False, one_way: bool = False
) -> Callable[[Sequence[Form], Tensor | None], Weight]:
    """Return a function that keeps a run of forms: packed where there is a kernel for it, else in plain torch.

    `one_way` is that of `PackedGrouped`, for batch-invariant ops.
    """

    def keep(run: Sequence[Form], bias: Tensor | None) -> Weight:
        ours = None
        if native is not None:
            ours = (packed_int8(native, run, bias) if int8 else None) or packed(native, run, bias)
            ours = ours or packed_codes(native, run, bias, one_way)
        return ours or plain_weight([rounded_to_int8(form) for form in run] if int8 else run, bias)

    return keep


def packed_codes(native: Native, run: Sequence[Form], bias: Tensor | None, one_way: bool) -> Weight | None:
    """Pack whole numbers or codes as a checkpoint has them; return None for floats, or if there is no kernel for it."""
    match run[0]:
        case Dense():
            return None
        case Int8():
            form = joined(run)
            return packed_levels(native, form, bias) if isinstance(form, Int8) else None
        case Grouped():
            form = joined(run)
            return packed_grouped(native, form, bias, one_way) if isinstance(form, Grouped) else None


def _nbytes(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.nbytes
