"""Weights on Ascend NPUs: matrices of int8 for its int8 products, and the NZ layout, in which they are read fastest.

NZ (FRACTAL_NZ) keeps a matrix in tiles of 16 x 32 bytes, column by column of tiles. A tensor in it still looks like the
matrix that it is, but views of it would not.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor

from tilewise.platforms.forms import Dense, Form, Int8, joined
from tilewise.platforms.ops import Ops
from tilewise.platforms.weights import DenseWeight, Int8Weight, Kept, Use, Weight, plain_weight

logger = logging.getLogger("tilewise")
npu = torch.ops.npu

_ND, _NZ = 2, 29
"""CANN's numbers of layouts: rows one behind the other (ACL_FORMAT_ND), and FRACTAL_NZ."""


class NzLayout(IntEnum):
    """The matrices that are kept in the NZ layout, by the numbers of vLLM-Ascend's VLLM_ASCEND_ENABLE_NZ."""

    NONE = 0
    QUANTISED = 1
    ALL = 2


def in_nz(matrix: Tensor) -> Tensor:
    """Return a matrix in the NZ layout; as it is where the driver refuses, which is logged."""
    if matrix.is_meta:
        return matrix
    try:
        cast: Tensor = npu.npu_format_cast(matrix, _NZ)
    except RuntimeError as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        logger.warning("NPU: a matrix %s keeps its layout, NZ is refused: %s", list(matrix.shape), reason)
        return matrix
    return cast


@dataclass(frozen=True, slots=True)
class AscendInt8Weight(Kept):
    """An `Int8` matrix (W8A8). Sums are exact; scales and bias come on top of them in the kernel, in float32."""

    matrix: Tensor
    """int8 [in, out]."""
    form: Int8
    """The form without its matrix, which is empty."""
    bias: Tensor | None
    floats: tuple[torch.dtype, ...]
    """Dtypes of rows that kernels take."""
    row_scale: Tensor | None
    """float32 [1], where the form is `static`."""
    row_offset: Tensor | None
    """int32 [1], where the form is `static`."""

    @classmethod
    def of(cls, form: Int8, bias: Tensor | None, nz: NzLayout, floats: tuple[torch.dtype, ...]) -> AscendInt8Weight:
        matrix = form.matrix.T.contiguous()
        kept = matrix if nz is NzLayout.NONE else in_nz(matrix)
        static, empty = form.static, form.scales.new_empty(1)
        rest = replace(form, matrix=form.matrix.new_empty(0, form.shape[1]))  # no view, which would keep all of it
        return cls(
            *(kept, rest, None if bias is None else bias.float(), floats),
            row_scale=None if static is None else torch.full_like(empty, static.scale),
            row_offset=None if static is None else torch.full_like(empty, static.offset, dtype=torch.int32),
        )

    def apply(self, x: Tensor, ops: Ops) -> Tensor:
        if x.dtype not in self.floats:
            return self._plain().apply(x, ops)
        rows = x.reshape(-1, x.shape[-1])
        y = self._dynamic(rows) if self.form.static is None else self._static(rows)
        return y.view(*x.shape[:-1], y.shape[-1])

    def _dynamic(self, rows: Tensor) -> Tensor:
        levels, row_scales = npu.npu_dynamic_quant(rows)
        y: Tensor = npu.npu_quant_matmul(
            *(levels, self.matrix, self.form.scales),
            pertoken_scale=row_scales,
            bias=self.bias,
            output_dtype=rows.dtype,
        )
        return y

    def _static(self, rows: Tensor) -> Tensor:
        levels = npu.npu_quantize(rows, self.row_scale, self.row_offset, torch.qint8, 1, True)
        scales = self.form.scales
        if rows.dtype is torch.float16:  # for which the kernel wants scales in a form of its own, of 64 bits
            scales = npu.npu_trans_quant_param(scales)
        y: Tensor = npu.npu_quant_matmul(levels, self.matrix, scales, bias=self.form.addend, output_dtype=rows.dtype)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _plain(self) -> Int8Weight:
        matrix = self.matrix if self.matrix.is_meta else npu.npu_format_cast(self.matrix, _ND)
        return Int8Weight(replace(self.form, matrix=matrix.T), self.bias)


@dataclass(slots=True, eq=False)
class AscendExpert(Kept):
    """One of many experts. `ExpertStack.of` makes its matrix a view of the stack of its layer's matrices."""

    matrix: Tensor
    """[in, out] in a float dtype, or int8."""
    scales: Tensor | None
    """float32 [out] for int8."""
    bias: Tensor | None

    def apply(self, x: Tensor, ops: Ops) -> Tensor:
        if self.scales is None:
            return ops.linear(x, self.matrix.T, self.bias)
        return Int8Weight(Int8(self.matrix.T, self.scales), self.bias).apply(x, ops)


def ascend_weight(
    nz: NzLayout, floats: tuple[torch.dtype, ...], use: Use, run: Sequence[Form], bias: Tensor | None
) -> Weight:
    """Keep a run of forms: for a kernel where there is one, else in plain torch."""
    match form := joined(run):
        case Int8():
            return AscendInt8Weight.of(form, bias, nz, floats)
        case Dense(matrix) if nz is NzLayout.ALL and use is Use.ALONE:
            return DenseWeight(in_nz(matrix), bias)
    return plain_weight([form], bias)


def ascend_expert(run: Sequence[Form], bias: Tensor | None) -> Weight:
    """Keep an expert so that it can be multiplied together with others, if its form allows it."""
    match form := joined(run):
        case Dense(matrix):
            return AscendExpert(matrix.T.contiguous(), None, bias)
        case Int8(matrix, scales) if form.static is None:
            return AscendExpert(matrix.T.contiguous(), scales, bias)
    return plain_weight([form], bias)
