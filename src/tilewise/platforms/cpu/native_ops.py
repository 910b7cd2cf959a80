"""NativeCpuOps: kernels of our own where they apply, torch's ops elsewhere."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tilewise.platforms.cpu.native.kernels import (
    DTYPES,
    KeptRows,
    Native,
    Rows,
    address,
    gapless,
    readable,
    readable_cache,
    rows_and_width,
)
from tilewise.platforms.cpu.packed import PackedGrouped, PackedInt8Weight, PackedWeight, keeper
from tilewise.platforms.forms import Form
from tilewise.platforms.kv_cache import LayerCache, PagedLayout, QuantisedCache
from tilewise.platforms.ops import AttentionSize, HeadNorms, TorchOps
from tilewise.platforms.weights import Use, Weight, side_by_side

_FLOAT = 4
_ROOM = 2**18
"""Numbers that sequences of a step may keep together until their parts are merged; more where one alone takes more."""


class NativeCpuOps(TorchOps):
    """The ops of a CPU by kernels of our own. Each asks whether its kernel was right when it was tried, and whether it
    can read these tensors; else torch computes.

    Attention keeps no scores, and reads keys and values where they are.
    """

    def __init__(self, native: Native) -> None:
        self.native = native

    def store(self, parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
        """Pack a matrix, even if its tensor is kept for something else too: torch would read it half as fast, and it is
        read for every token.
        """
        return side_by_side(parts, bias, keeper(self.native))

    def store_int8(self, parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
        return side_by_side(parts, bias, keeper(self.native, int8=True))

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if not (self.native.has("rms_norm") and readable(x, weight) and (rows := Rows.of(x))):
            return super().rms_norm(x, weight, eps)
        out = torch.empty(x.shape, dtype=x.dtype)
        place = DTYPES[x.dtype], x.data_ptr(), *rows
        self.native.launch("rms_norm", *place, weight.data_ptr(), out.data_ptr(), x.shape[-1], eps)
        return out

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        if not (self.native.has("layer_norm") and readable(x, weight, bias) and (rows := Rows.of(x))):
            return super().layer_norm(x, weight, bias, eps)
        out = torch.empty(x.shape, dtype=x.dtype)
        place, norm = (DTYPES[x.dtype], x.data_ptr(), *rows), (weight.data_ptr(), bias.data_ptr())
        self.native.launch("layer_norm", *place, *norm, out.data_ptr(), x.shape[-1], eps)
        return out

    def gelu(self, x: Tensor) -> Tensor:
        if not (self.native.has("gelu") and gapless(x)):
            return super().gelu(x)
        out = torch.empty(x.shape, dtype=x.dtype)
        self.native.launch("gelu", DTYPES[x.dtype], x.data_ptr(), out.data_ptr(), x.numel())
        return out

    def linear_gelu(self, x: Tensor, weight: Weight) -> Tensor:
        """Compute product and GELU at once, with the bits of one after the other: the product is rounded before."""
        if self.native.has("linear_gelu") and isinstance(weight, PackedWeight | PackedInt8Weight | PackedGrouped):
            return weight.apply(x, self, gelu=True)
        return super().linear_gelu(x, weight)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        if not (self.native.has("silu_mul") and gapless(gate_up)):
            return super().silu_mul(gate_up)
        rows, width = rows_and_width(gate_up)
        out = torch.empty(*gate_up.shape[:-1], width // 2, dtype=gate_up.dtype)
        self.native.launch("silu_mul", DTYPES[out.dtype], gate_up.data_ptr(), out.data_ptr(), rows, width // 2)
        return out

    def add_scaled(self, x: Tensor, scale: Tensor | None, y: Tensor) -> Tensor:
        if not (self.native.has("add_scaled") and x.shape == y.shape and gapless(x, y, scale)):
            return super().add_scaled(x, scale, y)
        total = torch.empty(x.shape, dtype=x.dtype)
        self.native.launch("add_scaled", *_sum(x, scale, y, total), *rows_and_width(x))
        return total

    def add_rms_norm(
        self, x: Tensor, scale: Tensor | None, y: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        if not (self.native.has("add_rms_norm") and x.shape == y.shape and gapless(x, y, weight, scale)):
            return super().add_rms_norm(x, scale, y, weight, eps)
        total, out = torch.empty(x.shape, dtype=x.dtype), torch.empty(x.shape, dtype=x.dtype)
        norm = weight.data_ptr(), out.data_ptr()
        self.native.launch("add_rms_norm", *_sum(x, scale, y, total), *norm, *rows_and_width(x), eps)
        return total, out

    def add_layer_norm(
        self, x: Tensor, scale: Tensor | None, y: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        if not (self.native.has("add_layer_norm") and x.shape == y.shape and gapless(x, y, weight, bias, scale)):
            return super().add_layer_norm(x, scale, y, weight, bias, eps)
        total, out = torch.empty(x.shape, dtype=x.dtype), torch.empty(x.shape, dtype=x.dtype)
        norm = weight.data_ptr(), bias.data_ptr(), out.data_ptr()
        self.native.launch("add_layer_norm", *_sum(x, scale, y, total), *norm, *rows_and_width(x), eps)
        return total, out

    def rope_into_cache(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: LayerCache,
        layout: PagedLayout,
        norms: HeadNorms | None = None,
    ) -> Tensor:
        query, key = self._normed_heads(query, key, norms)
        fits = readable(query, key, value) and gapless(cos, sin) and cos.dtype == torch.float32
        if not (self.native.has(_kernel("rope_into_cache", cache)) and fits and readable_cache(cache, query.dtype)):
            return super().rope_into_cache(query, key, value, cos, sin, cache, layout)
        kept = KeptRows.of(cache)
        out, (tokens, heads, width) = torch.empty(query.shape, dtype=query.dtype), query.shape
        self.native.launch(
            "rope_into_cache",
            *(DTYPES[query.dtype], tokens, width // 2),
            *(query.data_ptr(), heads, query.stride(0), query.stride(1)),
            *(key.data_ptr(), key.shape[1], key.stride(0), key.stride(1)),
            *(value.data_ptr(), value.stride(0), value.stride(1)),
            *(cos.data_ptr(), sin.data_ptr(), layout.kv_slots.data_ptr(), kept.numbers.data_ptr(), out.data_ptr()),
            *(kept.numbers.stride(0), cache.shape[-2] * width),
            *(kept.kind, kept.key_scales, kept.value_scales),
        )
        return out

    def dense_attention(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        if not (self.native.has("dense_attention") and readable(query, key, value) and key.shape == value.shape):
            return super().dense_attention(query, key, value, scale)
        tiles, queries, heads, width = query.shape
        out = torch.empty(query.shape, dtype=query.dtype)
        scratch = torch.empty(self._scratch(width))
        steps = _integers(step for x in (query, key, value) for step in x.stride()[:3])
        self.native.launch(
            "dense_attention",
            *(DTYPES[query.dtype], query.data_ptr(), key.data_ptr(), value.data_ptr(), out.data_ptr(), steps),
            *(tiles, queries, key.shape[1], heads, width, scale, scratch.data_ptr()),
        )
        return out

    def dense_scratch(self, size: AttentionSize) -> int:
        if self.native.has("dense_attention"):
            return _FLOAT * self._scratch(size.width)
        return super().dense_scratch(size)

    def paged_attention(
        self,
        query: Tensor,
        cache: LayerCache,
        layout: PagedLayout,
        scale: float,
        window: int | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        kernel, table = _kernel("paged_attention", cache), layout.block_table
        fits = readable(query) and readable_cache(cache, query.dtype) and table.stride(-1) == 1
        if not (self.native.has(kernel) and fits):
            return super().paged_attention(query, cache, layout, scale, window, sinks)
        _, heads, width = query.shape
        kept = KeptRows.of(cache)
        to_values, *steps, _ = kept.numbers.stride()
        block_tokens, kv_heads = cache.shape[2:4]
        out, keys = torch.empty(query.shape, dtype=query.dtype), kept.numbers.data_ptr()
        room = self._room(len(query) * heads // kv_heads, table.shape[1] * block_tokens, kv_heads, width)
        scratch = torch.empty(room + self._scratch(width))
        sinks = None if sinks is None else sinks.float()
        self.native.launch(
            kernel,
            *((DTYPES[query.dtype], kept.kind) if kept.kind else (DTYPES[query.dtype],)),
            *(query.data_ptr(), keys, keys + to_values * kept.numbers.element_size()),
            *((kept.key_scales, kept.value_scales) if kept.kind else ()),
            *(out.data_ptr(), _integers((0, *query.stride()[:2], *steps, *steps))),
            *(len(layout.seq_lens), layout.query_starts.data_ptr(), layout.seq_lens.data_ptr()),
            *(table.data_ptr(), table.stride(0), heads, kv_heads, width, block_tokens, scale, window or 0),
            *(address(sinks), scratch.data_ptr(), room),
        )
        return out

    def paged_scratch(self, size: AttentionSize) -> int:
        if not self.native.has("quantised_paged_attention" if size.quantised else "paged_attention"):
            return super().paged_scratch(size)
        room = self._room(size.queries * size.heads // size.kv_heads, size.keys, size.kv_heads, size.width)
        return _FLOAT * (room + self._scratch(size.width))

    def _scratch(self, width: int) -> int:
        """Return how many numbers all threads keep of an attention."""
        return self.native.number("attention_scratch", width) * torch.get_num_threads()

    def _room(self, rows: int, keys: int, kv_heads: int, width: int) -> int:
        """Return how many numbers sequences keep until their parts are merged, in whole cache lines.

        As sequences grow it stays the same: what is not needed is not touched.
        """
        return -(-max(_ROOM, self.native.number("attention_room", rows, keys, kv_heads, width)) // 16) * 16


def _kernel(op: str, cache: LayerCache) -> str:
    """Return the name of the kernel of an op that reads or writes this cache."""
    return f"quantised_{op}" if isinstance(cache, QuantisedCache) else op


def _sum(x: Tensor, scale: Tensor | None, y: Tensor, total: Tensor) -> tuple[int | None, ...]:
    return DTYPES[x.dtype], x.data_ptr(), address(scale), y.data_ptr(), total.data_ptr()


def _integers(values: Iterable[int]) -> ctypes.Array[ctypes.c_int64]:
    numbers = tuple(values)
    return (ctypes.c_int64 * len(numbers))(*numbers)
