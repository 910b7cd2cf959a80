"""TritonOps: our kernels in the places of torch's ops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tilewise.platforms.cuda import Card
from tilewise.platforms.cuda.kernels import experts, rows, sampling
from tilewise.platforms.cuda.kernels.attention import dense_attention, scratch_bytes
from tilewise.platforms.cuda.kernels.cache import rope_into_cache
from tilewise.platforms.cuda.kernels.paged_attention import paged_attention
from tilewise.platforms.cuda.weights import CudaWeight, cuda_store
from tilewise.platforms.draw import Draw
from tilewise.platforms.fallback import ExpertTables, FallbackOps, Together, by_kernel
from tilewise.platforms.forms import Form
from tilewise.platforms.kv_cache import LayerCache, PagedLayout
from tilewise.platforms.ops import AttentionSize, ExpertSize, choices_bytes
from tilewise.platforms.transfers import to_device
from tilewise.platforms.weights import Use, Weight, plain_weight, rounded_to_int8, side_by_side

_ROWS_OF_A_TILE = 128
"""Rows (query, head) of the largest tile; where a sequence has more, its past is not split."""


class TritonOps(FallbackOps):
    """The ops of a GPU by Triton kernels. Nothing here asks the device for a number, so that steps can be captured."""

    kernels = "CUDA kernels"

    def __init__(self, card: Card, fp8_rows: bool = False) -> None:
        """`fp8_rows`: rows are rounded to FP8 for matrices of FP8 (`cuda_store`), but for those of experts."""
        super().__init__()
        self.card, self._fp8_rows = card, fp8_rows
        self._tables = ExpertTables(experts.ExpertTable.of)

    @property
    def arithmetic(self) -> str:
        return super().arithmetic + self._fp8_rows * " with rows of FP8"

    def store(self, parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
        """Keep experts as they came, since so the kernel reads them that multiplies them together."""
        keep = plain_weight if use is Use.EXPERT else cuda_store(self.card, fp8_rows=self._fp8_rows)
        return side_by_side(parts, bias, keep)

    def store_int8(self, parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
        if use is Use.EXPERT:
            return side_by_side([rounded_to_int8(part) for part in parts], bias, plain_weight)
        return side_by_side(parts, bias, cuda_store(self.card, int8=True, fp8_rows=self._fp8_rows))

    def linear_gelu(self, x: Tensor, weight: Weight) -> Tensor:
        if isinstance(weight, CudaWeight):
            return weight.apply(x, self, gelu=True)
        return super().linear_gelu(x, weight)

    def _together(
        self,
        x: Tensor,
        gate_up: Sequence[Weight | None],
        down: Sequence[Weight | None],
        activation: Callable[[Tensor], Tensor],
    ) -> Together | None:
        first, second = self._tables.of(gate_up), self._tables.of(down)
        if first is None or second is None:
            return None
        gates: dict[Callable[[Tensor], Tensor], experts.FusedActivation] = {
            self.silu_mul: experts.FusedActivation.SILU,
            self.clamped_swiglu: experts.FusedActivation.CLAMPED,
        }
        applied = gates.get(activation, activation)
        return partial(experts.moe_experts, gate_up=first, down=second, activation=applied, card=self.card)

    rms_norm = by_kernel(rows.rms_norm)
    layer_norm = by_kernel(rows.layer_norm)
    gelu = by_kernel(rows.gelu)
    silu_mul = by_kernel(rows.silu_mul)
    add_scaled = by_kernel(rows.add_scaled)
    add_rms_norm = by_kernel(rows.add_rms_norm)
    add_layer_norm = by_kernel(rows.add_layer_norm)
    patchify = by_kernel(rows.patchify)
    scatter_rows = by_kernel(rows.scatter_rows)
    rope_into_cache = by_kernel(rope_into_cache)
    dense_attention = by_kernel(dense_attention)
    choose_experts = by_kernel(experts.choose_experts)

    def paged_attention(
        self,
        query: Tensor,
        cache: LayerCache,
        layout: PagedLayout,
        scale: float,
        window: int | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        return self.attempt(self._paged, super().paged_attention, query, cache, layout, scale, window, sinks)

    def _paged(
        self,
        query: Tensor,
        cache: LayerCache,
        layout: PagedLayout,
        scale: float,
        window: int | None,
        sinks: Tensor | None,
    ) -> Tensor:
        on_device = (layout.query_starts, layout.seq_lens, layout.block_table)
        most = (max(layout.host_counts), layout.most_tokens)
        return paged_attention(query, cache, *on_device, *most, scale, window, sinks, self.card)

    def paged_scratch(self, size: AttentionSize) -> int:
        """Count the partial results of pasts that are split, of all sequences together."""
        if "paged_attention" in self.left_out:
            return super().paged_scratch(size)
        rows = min(_ROWS_OF_A_TILE, size.queries * size.heads // size.kv_heads)
        return scratch_bytes(rows, size.width, self.card)

    def dense_scratch(self, size: AttentionSize) -> int:
        """Return 0 where the kernel is used: scores stay in registers."""
        return super().dense_scratch(size) if "dense_attention" in self.left_out else 0

    def moe_scratch(self, size: ExpertSize) -> int:
        """Count both products, of all choices, or what torch takes where experts are not multiplied together."""
        return max(choices_bytes(size), super().moe_scratch(size))

    def draw(self, logits: Tensor, draws: Sequence[Draw]) -> Tensor:
        return self.attempt(_drawn, super().draw, logits, draws)


def _drawn(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Draw as `draw` does. Settings are sent in the dtypes of the kernels, so that no launch has to turn them, and
    as if there were a multiple of four rows, so that each kind begins at a multiple of 16 bytes.
    """
    count, device = len(draws), logits.device
    numbers, whole = np.zeros((3, -(-count // 4) * 4), np.float32), np.zeros((3, -(-count // 4) * 4), np.int32)
    numbers[:, :count] = [[x.temperature for x in draws], [x.top_p for x in draws], [x.min_p for x in draws]]
    whole[0, :count] = [one.top_k for one in draws]
    whole[1:].reshape(-1)[: 2 * count] = [half for one in draws for half in one.key]
    temperature, top_p, min_p = to_device(numbers, device, torch.float32)[:, :count]
    settings = to_device(whole, device, torch.int32)
    return sampling.draw_rows(
        *(logits, to_device([one.row for one in draws], device), temperature, settings[0, :count], top_p, min_p),
        settings[1:].view(-1, 2)[:count],
        truncated=any(one.truncated for one in draws),
    )
