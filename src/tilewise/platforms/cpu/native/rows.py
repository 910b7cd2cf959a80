"""Calls of `src/rows.cpp`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from tilewise.platforms.cpu.native.call import DTYPES, Rows, function, threads


class RowKernels:
    """Ops of which each row is computed by itself. `rows` says where those of x are; the rest has no gaps."""

    def __init__(self, shared: ctypes.CDLL) -> None:
        self._rms_norm = function(shared, "rms_norm", "ipiiiippifi")
        self._layer_norm = function(shared, "layer_norm", "ipiiiipppifi")
        self._silu_mul = function(shared, "silu_mul", "ippiii")
        self._gelu = function(shared, "gelu", "ippii")
        self._rope = function(shared, "rope", "ipiiiipppii")
        self._write_rows = function(shared, "write_rows", "ipiiiippii")
        self._add_scaled = function(shared, "add_scaled", "ippppiii")

    def rms_norm(self, x: Tensor, rows: Rows, weight: Tensor, eps: float) -> Tensor:
        out = torch.empty(x.shape, dtype=x.dtype)
        self._rms_norm(*_place(x, rows), weight.data_ptr(), out.data_ptr(), x.shape[-1], eps, threads())
        return out

    def layer_norm(self, x: Tensor, rows: Rows, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        out = torch.empty(x.shape, dtype=x.dtype)
        parameters = weight.data_ptr(), bias.data_ptr()
        self._layer_norm(*_place(x, rows), *parameters, out.data_ptr(), x.shape[-1], eps, threads())
        return out

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        *outer, width = gate_up.shape
        out = torch.empty(*outer, width // 2, dtype=gate_up.dtype)
        rows = gate_up.numel() // max(1, width)
        self._silu_mul(DTYPES[out.dtype], gate_up.data_ptr(), out.data_ptr(), rows, width // 2, threads())
        return out

    def gelu(self, x: Tensor) -> Tensor:
        out = torch.empty(x.shape, dtype=x.dtype)
        self._gelu(DTYPES[x.dtype], x.data_ptr(), out.data_ptr(), x.numel(), threads())
        return out

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        out, (tokens, heads, width) = torch.empty(x.shape, dtype=x.dtype), x.shape
        rows = Rows(tokens, heads, x.stride(0), x.stride(1))
        self._rope(*_place(x, rows), cos.data_ptr(), sin.data_ptr(), out.data_ptr(), width // 2, threads())
        return out

    def write_rows(self, cache: Tensor, rows: Tensor, slots: Tensor) -> None:
        """rows [N, K, D] to their slots of cache [B, P, K, D]."""
        tokens, heads, width = rows.shape
        self._write_rows(
            *(rows.element_size(), rows.data_ptr(), tokens, heads, rows.stride(0), rows.stride(1)),
            *(slots.data_ptr(), cache.data_ptr(), width, threads()),
        )

    def add_scaled(self, x: Tensor, scale: Tensor | None, y: Tensor) -> Tensor:
        out, width = torch.empty(x.shape, dtype=x.dtype), x.shape[-1]
        factor = None if scale is None else scale.data_ptr()
        rows = x.numel() // max(1, width)
        self._add_scaled(DTYPES[x.dtype], x.data_ptr(), factor, y.data_ptr(), out.data_ptr(), rows, width, threads())
        return out


def _place(x: Tensor, rows: Rows) -> tuple[int, ...]:
    return DTYPES[x.dtype], x.data_ptr(), rows.outer, rows.inner, rows.outer_step, rows.inner_step
