"""Calls of `src/rows.cpp`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from tilewise.platforms.cpu.native.call import DTYPES, Rows, function, threads


class RowKernels:
    """Ops of which each row is computed by itself."""

    def __init__(self, shared: ctypes.CDLL) -> None:
        self._rms_norm = function(shared, "rms_norm", "ipiiiippifi")

    def rms_norm(self, x: Tensor, rows: Rows, weight: Tensor, eps: float) -> Tensor:
        out = torch.empty(x.shape, dtype=x.dtype)
        self._rms_norm(
            *(DTYPES[x.dtype], x.data_ptr(), rows.outer, rows.inner, rows.outer_step, rows.inner_step),
            *(weight.data_ptr(), out.data_ptr(), x.shape[-1], eps, threads()),
        )
        return out
