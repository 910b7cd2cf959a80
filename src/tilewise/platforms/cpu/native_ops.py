"""NativeCpuOps: kernels of our own where they apply, torch's ops elsewhere."""

from __future__ import annotations

from torch import Tensor

from tilewise.platforms.base import AttentionSize, PagedLayout
from tilewise.platforms.cpu.native.attention import readable_cache
from tilewise.platforms.cpu.native.call import Rows, readable
from tilewise.platforms.cpu.native.library import Native
from tilewise.platforms.cpu.ops import CpuOps


class NativeCpuOps(CpuOps):
    """Each op asks whether its kernel was right when it was tried, and whether it can read these tensors."""

    def __init__(self, native: Native) -> None:
        self._native = native

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if self._has("rms_norm") and readable(x, weight) and (rows := Rows.of(x)):
            return self._native.rows.rms_norm(x, rows, weight, eps)
        return super().rms_norm(x, weight, eps)

    def dense_attention(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        if self._has("dense_attention") and readable(query, key, value):
            return self._native.attention.dense(query, key, value, scale)
        return super().dense_attention(query, key, value, scale)

    def dense_scratch(self, size: AttentionSize) -> int:
        if self._has("dense_attention"):
            return self._native.attention.scratch(size, paged=False)
        return super().dense_scratch(size)

    def paged_attention(
        self,
        query: Tensor,
        cache: Tensor,
        layout: PagedLayout,
        scale: float,
        window: int | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        if self._has("paged_attention") and readable_cache(query, cache, layout.block_table):
            return self._native.attention.paged(query, cache, layout, scale, window, sinks)
        return super().paged_attention(query, cache, layout, scale, window, sinks)

    def paged_scratch(self, size: AttentionSize) -> int:
        if self._has("paged_attention"):
            return self._native.attention.scratch(size, paged=True)
        return super().paged_scratch(size)

    def _has(self, kernel: str) -> bool:
        return kernel not in self._native.left_out
