"""TritonOps: our kernels in the places of torch's ops."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from tilewise.platforms.base import AttentionSize, PagedLayout
from tilewise.platforms.cuda.card import Card
from tilewise.platforms.cuda.kernels import cache as cache_kernels
from tilewise.platforms.cuda.kernels import patches, rows, sampling
from tilewise.platforms.cuda.kernels.paged_attention import paged_attention
from tilewise.platforms.cuda.kernels.tile_attention import tile_attention
from tilewise.platforms.draw import Draw
from tilewise.platforms.kv_cache import LayerCache
from tilewise.platforms.torch_ops import TorchOps
from tilewise.platforms.transfers import sent

logger = logging.getLogger("tilewise")

Result = TypeVar("Result")
_SPLITS_BYTES = 32 * 2**20
"""More than partial results of attention over splits of the past ever take: there are a few for each processor."""


class TritonOps(TorchOps):
    """A kernel that cannot be compiled or launched here is left out from then on, and said once; torch computes then.

    Nothing here asks the device for a number, so that steps can be captured.
    """

    def __init__(self, card: Card) -> None:
        self.card = card
        self.left_out: dict[str, str] = {}
        """By op, why its kernel is not used."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._by_kernel(
            "rms_norm", lambda: rows.rms_norm(x, weight, eps), lambda: super(TritonOps, self).rms_norm(x, weight, eps)
        )

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return self._by_kernel(
            "layer_norm",
            lambda: rows.layer_norm(x, weight, bias, eps),
            lambda: super(TritonOps, self).layer_norm(x, weight, bias, eps),
        )

    def gelu(self, x: Tensor) -> Tensor:
        return self._by_kernel("gelu", lambda: rows.gelu(x), lambda: super(TritonOps, self).gelu(x))

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        return self._by_kernel(
            "silu_mul", lambda: rows.silu_mul(gate_up), lambda: super(TritonOps, self).silu_mul(gate_up)
        )

    def add_scaled(self, x: Tensor, scale: Tensor | None, y: Tensor) -> Tensor:
        return self._by_kernel(
            "add_scaled",
            lambda: rows.add_scaled(x, scale, y),
            lambda: super(TritonOps, self).add_scaled(x, scale, y),
        )

    def add_rms_norm(
        self, x: Tensor, scale: Tensor | None, y: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        return self._by_kernel(
            "add_rms_norm",
            lambda: rows.add_rms_norm(x, scale, y, weight, eps),
            lambda: super(TritonOps, self).add_rms_norm(x, scale, y, weight, eps),
        )

    def add_layer_norm(
        self, x: Tensor, scale: Tensor | None, y: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        return self._by_kernel(
            "add_layer_norm",
            lambda: rows.add_layer_norm(x, scale, y, weight, bias, eps),
            lambda: super(TritonOps, self).add_layer_norm(x, scale, y, weight, bias, eps),
        )

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
        return self._by_kernel(
            "rope_into_cache",
            lambda: cache_kernels.rope_into_cache(query, key, value, cos, sin, cache, layout),
            lambda: super(TritonOps, self).rope_into_cache(query, key, value, cos, sin, cache, layout),
        )

    def paged_attention(
        self,
        query: Tensor,
        cache: LayerCache,
        layout: PagedLayout,
        scale: float,
        window: int | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        on_device = (layout.query_starts, layout.seq_lens, layout.block_table)
        return self._by_kernel(
            "paged_attention",
            lambda: paged_attention(
                *(query, cache, *on_device, max(layout.host_counts), max(layout.host_lengths)),
                *(scale, window, sinks, self.card),
            ),
            lambda: super(TritonOps, self).paged_attention(query, cache, layout, scale, window, sinks),
        )

    def paged_scratch(self, size: AttentionSize) -> int:
        return super().paged_scratch(size) if "paged_attention" in self.left_out else _SPLITS_BYTES

    def dense_attention(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        return self._by_kernel(
            "dense_attention",
            lambda: tile_attention(query, key, value, scale),
            lambda: super(TritonOps, self).dense_attention(query, key, value, scale),
        )

    def draw(self, logits: Tensor, draws: Sequence[Draw]) -> Tensor:
        return self._by_kernel(
            "draw", lambda: _drawn(logits, draws), lambda: super(TritonOps, self).draw(logits, draws)
        )

    def patchify(self, pixels: Tensor, patch: int, mean: Tensor, std: Tensor) -> Tensor:
        return self._by_kernel(
            "patchify",
            lambda: patches.patchify(pixels, patch, mean.float(), std.float()),
            lambda: super(TritonOps, self).patchify(pixels, patch, mean, std),
        )

    def scatter_rows(self, target: Tensor, rows_of: Tensor, source: Tensor, source_rows: Tensor) -> None:
        self._by_kernel(
            "scatter_rows",
            lambda: rows.scatter_rows(target, rows_of, source, source_rows),
            lambda: super(TritonOps, self).scatter_rows(target, rows_of, source, source_rows),
        )

    def _by_kernel(self, op: str, kernel: Callable[[], Result], instead: Callable[[], Result]) -> Result:
        if op in self.left_out:
            return instead()
        try:
            return kernel()
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # Triton and ptxas have a dozen, without a common name
            self.left_out[op] = (str(error).strip().splitlines() or [type(error).__name__])[0]
            logger.warning("CUDA kernels: %s is left to torch, as ours fails: %s", op, self.left_out[op])
            return instead()


def _drawn(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """What the rows want goes to the device in two copies."""
    device = logits.device
    whole = sent([(one.row, one.top_k, *one.key) for one in draws], device)
    parts = sent([(one.temperature, one.top_p, one.min_p) for one in draws], device, torch.float32)
    return sampling.draw_rows(
        *(logits, whole[:, 0].contiguous(), parts[:, 0].contiguous(), whole[:, 1].int().contiguous()),
        *(parts[:, 1].contiguous(), parts[:, 2].contiguous(), whole[:, 2:].int().contiguous()),
        truncated=any(one.truncated for one in draws),
    )
