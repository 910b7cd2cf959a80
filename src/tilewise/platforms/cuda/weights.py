"""Quantised weights on NVIDIA cards: each form in the order in which its kernel reads it, put so once at load.

Floats stay with torch, whose products are cuBLAS's; forms that have no kernel are kept in plain torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tilewise.platforms.cuda import Card
from tilewise.platforms.cuda.kernels import rounding
from tilewise.platforms.cuda.kernels.grouped_product import codes_of, grouped_product, run_of, words_of
from tilewise.platforms.cuda.kernels.products import STEP, Epilogue, fp8_product, int8_product
from tilewise.platforms.fallback import FallbackOps
from tilewise.platforms.forms import Codes, Form, Grouped, Int8, StaticRows, joined, zeros_of
from tilewise.platforms.ops import Ops
from tilewise.platforms.weights import GroupedWeight, Int8Weight, Kept, Weight, plain_weight, rounded_to_int8

Product = Callable[[Tensor, Ops, bool], Tensor]
"""A product of rows, by ops, with GELU of the result or without."""

_BYTES = 16
"""Bytes at whose multiples rows of a matrix of bytes begin, as the widest copies need it."""
_OUTPUTS = 4096
"""Outputs whose codes torch unpacks at a time."""


@dataclass(frozen=True, slots=True)
class CudaInt8Weight(Kept):
    """An `Int8` matrix (W8A8). Sums are exact: results are those of `weights.Int8Weight`, GELU apart."""

    card: Card
    matrix: Tensor
    """int8 [outputs, inputs and zeros up to a multiple of 16]."""
    scales: Tensor
    bias: Tensor | None
    static: StaticRows | None
    addend: Tensor | None

    @classmethod
    def of(cls, card: Card, form: Int8, bias: Tensor | None) -> CudaInt8Weight:
        return cls(card, _with_aligned_rows(form.matrix), form.scales, bias, form.static, form.addend)

    def apply(self, x: Tensor, ops: Ops, gelu: bool = False) -> Tensor:
        return _attempt(self._launched, self.int8_product, x, ops, gelu)

    def int8_product(self, x: Tensor, ops: Ops, gelu: bool) -> Tensor:
        """Multiply by torch, where the kernel fails."""
        matrix = self.matrix[:, : x.shape[-1]]
        y = Int8Weight(Int8(matrix, self.scales, self.static, self.addend), self.bias).apply(x, ops)
        return ops.gelu(y) if gelu else y

    def _launched(self, x: Tensor, ops: Ops, gelu: bool) -> Tensor:
        row_scales: Tensor | None = None
        if self.static is None:
            levels, row_scales = rounding.int8_rows(x)
        else:
            levels = rounding.int8_rows_static(x, self.static)
        epilogue = Epilogue(row_scales, self.scales, self.addend, self.bias, gelu)
        y = int8_product(levels, self.matrix, x.dtype, epilogue, self.card)
        return y.view(*x.shape[:-1], len(self.matrix))


@dataclass(frozen=True, slots=True)
class CudaGroupedWeight(Kept):
    """A `Grouped` matrix that multiplies rows of floats (W4A16, MXFP4, W8A16).

    Many rows are multiplied by the numbers of `weights.GroupedWeight`, rounded to the dtype of the rows; few rows by
    numbers that are not rounded.
    """

    card: Card
    kind: Codes
    words: Tensor
    """int32 [outputs, words], packed by `grouped_product.words_of`."""
    scales: Tensor
    """[groups, outputs] in the shortest float dtype that holds them exactly; float32 for meta tensors."""
    shifts: Tensor | None
    """[groups, outputs] in a float dtype like `scales`, or uint8 zero points, which stand for -zero * scale."""
    group: int
    order: Tensor | None
    bias: Tensor | None

    @classmethod
    def of(cls, card: Card, form: Grouped, bias: Tensor | None) -> CudaGroupedWeight | None:
        """Pack a form; return None if its groups are too small for the tensor cores, or too odd."""
        run = run_of(form.kind, form.group, form.shape[1])
        if run is None:
            return None
        scales, shifts = form.scales, form.shifts
        if not scales.is_meta:
            if form.kind is Codes.FP8:  # kernels read NaN as 480: scales of NaN make all of its output NaN
                none = (form.codes & 127).eq(127).any(1, keepdim=True)
                scales = scales.masked_fill(none, float("nan"))
            zeros = None if shifts is None else zeros_of(form)
            shifts = shifts if zeros is None else zeros.to(torch.uint8)
        return cls(
            *(card, form.kind, words_of(form, run), _short(scales.T), None if shifts is None else _short(shifts.T)),
            *(form.group, form.order, bias),
        )

    def apply(self, x: Tensor, ops: Ops, gelu: bool = False) -> Tensor:
        return _attempt(self._launched, self.grouped_product, x, ops, gelu)

    def grouped_product(self, x: Tensor, ops: Ops, gelu: bool) -> Tensor:
        """Multiply by torch, where the kernel fails: codes are unpacked for each product, some outputs at a time."""
        parts = [
            self._plain(slice(first, first + _OUTPUTS), x.shape[-1]) for first in range(0, len(self.words), _OUTPUTS)
        ]
        y = torch.cat([part.apply(x, ops) for part in parts], dim=-1)
        return ops.gelu(y) if gelu else y

    def _plain(self, which: slice, inputs: int) -> GroupedWeight:
        """Return some outputs in the form in which torch multiplies them."""
        run = run_of(self.kind, self.group, inputs)
        assert run is not None
        scales, shifts = self.scales.T[which].float(), None if self.shifts is None else self.shifts.T[which].float()
        if shifts is not None and self.shifts is not None and self.shifts.dtype is torch.uint8:
            shifts = -shifts * scales
        codes = codes_of(self.words[which], self.kind, run, inputs)
        form = Grouped(self.kind, codes, scales, shifts, self.group, self.order)
        return GroupedWeight(form, None if self.bias is None else self.bias[which])

    def _launched(self, x: Tensor, ops: Ops, gelu: bool) -> Tensor:
        rows = _rows(x, self.order)
        own = (self.kind, self.words, self.scales, self.shifts, self.group, self.bias)
        return grouped_product(rows, *own, gelu, self.card).view(*x.shape[:-1], len(self.words))


@dataclass(frozen=True, slots=True)
class CudaFp8Weight(Kept):
    """A `Grouped` matrix of FP8 that multiplies rows rounded to FP8 as they come: a scale for each output and row, or
    for each 128 inputs of both.
    """

    card: Card
    matrix: Tensor
    """float8_e4m3fn [outputs, inputs and zeros up to a multiple of 16]."""
    scales: Tensor
    """float32 [groups, outputs]."""
    order: Tensor | None
    bias: Tensor | None

    @classmethod
    def of(cls, card: Card, form: Grouped, bias: Tensor | None) -> CudaFp8Weight | None:
        """Pack a form; return None for other codes and groups, and on cards that do not multiply FP8."""
        if form.kind is not Codes.FP8 or form.shifts is not None or not card.has_fp8:
            return None
        if form.scales.shape[1] > 1 and form.group != STEP:
            return None
        matrix = _with_aligned_rows(form.codes).view(torch.float8_e4m3fn)
        return cls(card, matrix, form.scales.T.contiguous(), form.order, bias)

    def apply(self, x: Tensor, ops: Ops, gelu: bool = False) -> Tensor:
        return _attempt(self._launched, self.fp8_product, x, ops, gelu)

    def fp8_product(self, x: Tensor, ops: Ops, gelu: bool) -> Tensor:
        """Multiply rows that are not rounded by torch, where the kernel fails."""
        inputs = x.shape[-1]
        codes, group = self.matrix.view(torch.uint8)[:, :inputs], STEP if len(self.scales) > 1 else inputs
        y = GroupedWeight(Grouped(Codes.FP8, codes, self.scales.T, None, group, self.order), self.bias).apply(x, ops)
        return ops.gelu(y) if gelu else y

    def _launched(self, x: Tensor, ops: Ops, gelu: bool) -> Tensor:
        rows = _rows(x, self.order)
        if len(self.scales) == 1:
            rounded, row_scales = rounding.fp8_rows(rows)
            epilogue = Epilogue(row_scales, self.scales, None, self.bias, gelu)
            y = fp8_product(rounded, self.matrix, x.dtype, epilogue, self.card)
        else:
            rounded, row_scales = rounding.fp8_groups(rows)
            epilogue = Epilogue(bias=self.bias, gelu=gelu)
            y = fp8_product(rounded, self.matrix, x.dtype, epilogue, self.card, self.scales, row_scales)
        return y.view(*x.shape[:-1], len(self.matrix))


def _attempt(kernel: Product, instead: Product, x: Tensor, ops: Ops, gelu: bool) -> Tensor:
    """Return what a kernel gives, or where it fails, what torch gives; other ops than a platform's let it fail."""
    return ops.attempt(kernel, instead, x, ops, gelu) if isinstance(ops, FallbackOps) else kernel(x, ops, gelu)


CudaWeight = CudaInt8Weight | CudaGroupedWeight | CudaFp8Weight
"""Weights whose `apply` takes `gelu`, for `Ops.gelu` of the result, which is rounded before."""


def cuda_store(
    card: Card, int8: bool = False, fp8_rows: bool = False
) -> Callable[[Sequence[Form], Tensor | None], Weight]:
    """Return a function that keeps a run of forms: for a kernel where there is one, else in plain torch.

    `int8`: floats are rounded to int8, a scale for each output. `fp8_rows`: rows are rounded to FP8 for matrices of
    FP8, where the card multiplies such numbers. That is faster for many rows, and no longer the product that the
    checkpoint's numbers say: each number of a row is off by up to a 16th, and one that is tiny beside the largest of
    its scale, by up to a 450,000th of that.
    """

    def keep(run: Sequence[Form], bias: Tensor | None) -> Weight:
        form = joined([rounded_to_int8(form) for form in run] if int8 else run)
        ours: Weight | None = None
        match form:
            case Int8():
                ours = CudaInt8Weight.of(card, form, bias)
            case Grouped():
                ours = CudaFp8Weight.of(card, form, bias) if fp8_rows else None
                ours = ours or CudaGroupedWeight.of(card, form, bias)
        return ours or plain_weight([form], bias)

    return keep


def _rows(x: Tensor, order: Tensor | None) -> Tensor:
    """Return x [..., inputs] as [n, inputs] without gaps within a row, columns in the order of the codes."""
    rows = x.reshape(-1, x.shape[-1])
    if order is not None:
        return rows.index_select(1, order)
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _with_aligned_rows(matrix: Tensor) -> Tensor:
    return F.pad(matrix, (0, -matrix.shape[1] % _BYTES)).contiguous()


def _short(numbers: Tensor) -> Tensor:
    """Return numbers in the shortest of the models' dtypes that holds them exactly, without gaps."""
    if not numbers.is_meta and numbers.is_floating_point():
        for dtype in (torch.bfloat16, torch.float16):
            if torch.equal(numbers.to(dtype).float(), numbers):
                return numbers.to(dtype).contiguous()
    return numbers.contiguous()
