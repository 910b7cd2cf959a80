"""NativeCpuOps: kernels of our own where they apply, torch's ops elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tilewise.platforms.base import AttentionSize, PagedLayout, Use, Weight
from tilewise.platforms.cpu.native.kernels import Native
from tilewise.platforms.cpu.native.library import Rows, gapless, readable, readable_cache
from tilewise.platforms.cpu.packed import PackedGrouped, PackedInt8Weight, PackedWeight, keeper
from tilewise.platforms.forms import Form
from tilewise.platforms.kv_cache import LayerCache, QuantisedCache
from tilewise.platforms.torch_ops import TorchOps
from tilewise.platforms.weights import side_by_side


class NativeCpuOps(TorchOps):
    """The ops of a CPU by kernels of our own. Each asks whether its kernel was right when it was tried, and whether it
    can read these tensors; else torch computes.
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
        if self._has("rms_norm") and readable(x, weight) and (rows := Rows.of(x)):
            return self.native.rows.rms_norm(x, rows, weight, eps)
        return super().rms_norm(x, weight, eps)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        if self._has("layer_norm") and readable(x, weight, bias) and (rows := Rows.of(x)):
            return self.native.rows.layer_norm(x, rows, weight, bias, eps)
        return super().layer_norm(x, weight, bias, eps)

    def gelu(self, x: Tensor) -> Tensor:
        if self._has("gelu") and gapless(x):
            return self.native.rows.gelu(x)
        return super().gelu(x)

    def linear_gelu(self, x: Tensor, weight: Weight) -> Tensor:
        """Compute product and GELU at once, with the bits of one after the other: the product is rounded before."""
        if self._has("linear_gelu") and isinstance(weight, PackedWeight | PackedInt8Weight | PackedGrouped):
            return weight.apply(x, self, gelu=True)
        return super().linear_gelu(x, weight)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        if self._has("silu_mul") and gapless(gate_up):
            return self.native.rows.silu_mul(gate_up)
        return super().silu_mul(gate_up)

    def add_scaled(self, x: Tensor, scale: Tensor | None, y: Tensor) -> Tensor:
        if self._has("add_scaled") and x.shape == y.shape and gapless(x, y, *_given(scale)):
            return self.native.rows.add_scaled(x, scale, y)
        return super().add_scaled(x, scale, y)

    def add_rms_norm(
        self, x: Tensor, scale: Tensor | None, y: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        if self._has("add_rms_norm") and x.shape == y.shape and gapless(x, y, weight, *_given(scale)):
            return self.native.rows.add_rms_norm(x, scale, y, weight, eps)
        return super().add_rms_norm(x, scale, y, weight, eps)

    def add_layer_norm(
        self, x: Tensor, scale: Tensor | None, y: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        if self._has("add_layer_norm") and x.shape == y.shape and gapless(x, y, weight, bias, *_given(scale)):
            return self.native.rows.add_layer_norm(x, scale, y, weight, bias, eps)
        return super().add_layer_norm(x, scale, y, weight, bias, eps)

    def rope_into_cache(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: LayerCache,
        layout: PagedLayout,
    ) -> Tensor:
        fits = readable(query, key, value) and gapless(cos, sin) and cos.dtype == torch.float32
        if self._has(_kernel("rope_into_cache", cache)) and fits and readable_cache(cache, query.dtype):
            return self.native.rows.rope_into_cache(query, key, value, cos, sin, cache, layout.kv_slots)
        return super().rope_into_cache(query, key, value, cos, sin, cache, layout)

    def dense_attention(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        if self._has("dense_attention") and readable(query, key, value) and key.shape == value.shape:
            return self.native.attention.dense(query, key, value, scale)
        return super().dense_attention(query, key, value, scale)

    def dense_scratch(self, size: AttentionSize) -> int:
        if self._has("dense_attention"):
            return self.native.attention.scratch(size, paged=False)
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
        fits = readable(query) and readable_cache(cache, query.dtype) and layout.block_table.stride(-1) == 1
        if self._has(_kernel("paged_attention", cache)) and fits:
            return self.native.attention.paged(query, cache, layout, scale, window, sinks)
        return super().paged_attention(query, cache, layout, scale, window, sinks)

    def paged_scratch(self, size: AttentionSize) -> int:
        if self._has("quantised_paged_attention" if size.quantised else "paged_attention"):
            return self.native.attention.scratch(size, paged=True)
        return super().paged_scratch(size)

    def _has(self, kernel: str) -> bool:
        return kernel not in self.native.left_out


def _kernel(op: str, cache: LayerCache) -> str:
    """Return the name of the kernel of an op that reads or writes this cache."""
    return f"quantised_{op}" if isinstance(cache, QuantisedCache) else op


def _given(tensor: Tensor | None) -> tuple[Tensor, ...]:
    return () if tensor is None else (tensor,)
