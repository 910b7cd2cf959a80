"""Calls of `src/linear.cpp` and `src/int8.cpp`, which multiply with a matrix that they have packed."""

from __future__ import annotations

import torch
from torch import Tensor

from tilewise.platforms.cpu.native.call import DTYPES, threads
from tilewise.platforms.cpu.native.library import Library

_PANEL, _STEP = 16, 4
"""Outputs of a panel, and what inputs are filled up to a multiple of: as `src/packed.h` has them."""


class MatrixKernels:
    """x [..., inputs] without gaps, in the dtype that the matrix had; bias in the same. `gelu`: of what comes out."""

    def __init__(self, library: Library) -> None:
        self._pack = library.kernel("pack_linear", "ipiipi")
        self._linear = library.kernel("linear", "ipiipppiii")
        self._pack_int8 = library.kernel("pack_int8", "ipiipppi")
        self._linear_int8 = library.kernel("linear_int8", "ipiipppppiii")

    def pack(self, matrix: Tensor) -> Tensor:
        """Panels of a matrix [outputs, inputs]; of shapes alone, their shape."""
        packed = _panels(matrix, matrix.dtype)
        if not matrix.is_meta:
            self._pack(DTYPES[matrix.dtype], matrix.data_ptr(), *matrix.shape, packed.data_ptr(), threads())
        return packed

    def linear(self, x: Tensor, packed: Tensor, bias: Tensor | None, outputs: int, gelu: bool) -> Tensor:
        out = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype)
        inputs = x.shape[-1]
        self._linear(
            *(DTYPES[x.dtype], x.data_ptr(), x.numel() // inputs, inputs, packed.data_ptr()),
            *(None if bias is None else bias.data_ptr(), out.data_ptr(), outputs, gelu, threads()),
        )
        return out

    def pack_int8(self, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Panels, and for each output its scale and the sum of its weights."""
        packed = _panels(matrix, torch.int8)
        scales = torch.empty(len(matrix), dtype=torch.float32, device=matrix.device)
        totals = torch.empty(len(matrix), dtype=torch.int32, device=matrix.device)
        if not matrix.is_meta:
            places = (packed.data_ptr(), scales.data_ptr(), totals.data_ptr())
            self._pack_int8(DTYPES[matrix.dtype], matrix.data_ptr(), *matrix.shape, *places, threads())
        return packed, scales, totals

    def linear_int8(
        self, x: Tensor, packed: Tensor, scales: Tensor, totals: Tensor, bias: Tensor | None, gelu: bool
    ) -> Tensor:
        inputs, outputs = x.shape[-1], scales.numel()
        out = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype)
        self._linear_int8(
            *(DTYPES[x.dtype], x.data_ptr(), x.numel() // inputs, inputs),
            *(packed.data_ptr(), scales.data_ptr(), totals.data_ptr()),
            *(None if bias is None else bias.data_ptr(), out.data_ptr(), outputs, gelu, threads()),
        )
        return out


def _panels(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    outputs, inputs = matrix.shape
    return torch.empty(-(-outputs // _PANEL), -(-inputs // _STEP) * _STEP, _PANEL, dtype=dtype, device=matrix.device)
