"""Calls of `src/rows.cpp`."""

from __future__ import annotations

import torch
from torch import Tensor

from tilewise.platforms.cpu.native.call import DTYPES, KeptRows, Rows, threads
from tilewise.platforms.cpu.native.library import Library
from tilewise.platforms.kv_cache import LayerCache


class RowKernels:
    """Ops of which each row is computed by itself. `rows` says where those of x are; the rest has no gaps."""

    def __init__(self, library: Library) -> None:
        self._rms_norm = library.kernel("rms_norm", "ipiiiippifi")
        self._layer_norm = library.kernel("layer_norm", "ipiiiipppifi")
        self._silu_mul = library.kernel("silu_mul", "ippiii")
        self._gelu = library.kernel("gelu", "ippii")
        self._rope_into_cache = library.kernel("rope_into_cache", "iii" + "piii" * 2 + "pii" + "pppppii" + "ippi")
        self._add_scaled = library.kernel("add_scaled", "ippppiii")
        self._add_rms_norm = library.kernel("add_rms_norm", "ipppp" + "ppiifi")
        self._add_layer_norm = library.kernel("add_layer_norm", "ipppp" + "pppiifi")

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

    def rope_into_cache(
        self, query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache, slots: Tensor
    ) -> Tensor:
        kept = KeptRows.of(cache)
        out, (tokens, heads, width) = torch.empty(query.shape, dtype=query.dtype), query.shape
        self._rope_into_cache(
            *(DTYPES[query.dtype], tokens, width // 2),
            *(query.data_ptr(), heads, query.stride(0), query.stride(1)),
            *(key.data_ptr(), key.shape[1], key.stride(0), key.stride(1)),
            *(value.data_ptr(), value.stride(0), value.stride(1)),
            *(cos.data_ptr(), sin.data_ptr(), slots.data_ptr(), kept.numbers.data_ptr(), out.data_ptr()),
            *(
                kept.numbers.stride(0),
                cache.shape[-2] * width,
                kept.kind,
                kept.key_scales,
                kept.value_scales,
                threads(),
            ),
        )
        return out

    def add_scaled(self, x: Tensor, scale: Tensor | None, y: Tensor) -> Tensor:
        out = torch.empty(x.shape, dtype=x.dtype)
        self._add_scaled(*_sum(x, scale, y, out), *_sizes(x), threads())
        return out

    def add_rms_norm(
        self, x: Tensor, scale: Tensor | None, y: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        total, out = torch.empty(x.shape, dtype=x.dtype), torch.empty(x.shape, dtype=x.dtype)
        sizes = _sizes(x)
        self._add_rms_norm(*_sum(x, scale, y, total), weight.data_ptr(), out.data_ptr(), *sizes, eps, threads())
        return total, out

    def add_layer_norm(
        self, x: Tensor, scale: Tensor | None, y: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        total, out = torch.empty(x.shape, dtype=x.dtype), torch.empty(x.shape, dtype=x.dtype)
        norm = weight.data_ptr(), bias.data_ptr(), out.data_ptr()
        self._add_layer_norm(*_sum(x, scale, y, total), *norm, *_sizes(x), eps, threads())
        return total, out


def _sum(x: Tensor, scale: Tensor | None, y: Tensor, total: Tensor) -> tuple[int | None, ...]:
    factor = None if scale is None else scale.data_ptr()
    return DTYPES[x.dtype], x.data_ptr(), factor, y.data_ptr(), total.data_ptr()


def _sizes(x: Tensor) -> tuple[int, int]:
    """Rows and their width."""
    width = x.shape[-1]
    return x.numel() // max(1, width), width


def _place(x: Tensor, rows: Rows) -> tuple[int, ...]:
    return DTYPES[x.dtype], x.data_ptr(), rows.outer, rows.inner, rows.outer_step, rows.inner_step
