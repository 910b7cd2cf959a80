"""Experts on Ascend NPUs: routing, two grouped products and the sum over choices, without a wait for the device.

A choice is one of the N * k pairs of a token and an expert. The routing kernel sorts rows of x by the expert that was
chosen for them, and tells where each choice went; the grouped product multiplies each expert's rows by its matrix; and
the last kernel adds up each token's choices by their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tilewise.platforms.ascend.weights import AscendExpert
from tilewise.platforms.weights import Weight

npu = torch.ops.npu


@dataclass(frozen=True, slots=True)
class ExpertStack:
    """The experts of a layer that this rank has, which are neighbours, in one tensor."""

    matrices: Tensor
    """[experts here, in, out] in a float dtype, or int8."""
    scales: Tensor | None
    """float32 [experts here, out] for int8."""
    biases: Tensor | None
    """[experts here, out]."""
    first: int
    """Number of the first expert here."""
    total: int
    """Experts of the layer, here and on other ranks."""

    @classmethod
    def of(cls, weights: Sequence[Weight | None]) -> ExpertStack | None:
        """Stack experts that are kept alike, two at least; None where they cannot be multiplied together.

        Their own matrices become views of the stack, so that nothing is kept twice.
        """
        here = [number for number, weight in enumerate(weights) if weight is not None]
        own = [weight for weight in weights if isinstance(weight, AscendExpert)]
        if len(own) < 2 or here != list(range(here[0], here[0] + len(own))):
            return None
        first = own[0]
        if first.matrix.is_meta or any(not _alike(first, other) for other in own):
            return None
        matrices = torch.stack([expert.matrix for expert in own])
        for expert, matrix in zip(own, matrices, strict=True):
            expert.matrix = matrix
        scales = None if first.scales is None else torch.stack([x for one in own if (x := one.scales) is not None])
        biases = None if first.bias is None else torch.stack([x for one in own if (x := one.bias) is not None])
        return cls(matrices, scales, biases, here[0], len(weights))

    @property
    def is_all(self) -> bool:
        return len(self.matrices) == self.total

    @property
    def rounds_rows(self) -> bool:
        """True for int8, whose kernel rounds rows in halves alone."""
        return self.scales is not None

    def product(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Multiply rows [n, in], sorted by expert, of which each has so many (int64 [experts here]) -> [n, out].

        Rows behind those of all experts come out as anything.
        """
        if self.scales is None and self.biases is None:
            return _grouped(rows, self.matrices, counts, rows.dtype)
        places = torch.arange(len(rows), device=rows.device)
        # The expert of each row; for those behind all of them, the last one.
        owners = torch.searchsorted(counts.cumsum(0), places, right=True).clamp(max=len(self.matrices) - 1)
        if self.scales is None:
            y = _grouped(rows, self.matrices, counts, rows.dtype).float()
        else:
            levels, row_scales = npu.npu_dynamic_quant(rows)
            sums = _grouped(levels, self.matrices, counts, torch.int32)
            y = sums.float() * (row_scales[:, None] * self.scales[owners])
        if self.biases is not None:
            y = y + self.biases[owners].float()
        return y.to(rows.dtype)


def _alike(first: AscendExpert, other: AscendExpert) -> bool:
    return (
        (first.matrix.shape, first.matrix.dtype, first.scales is None, first.bias is None)
        == (other.matrix.shape, other.matrix.dtype, other.scales is None, other.bias is None)
    )  # fmt: skip


def _grouped(rows: Tensor, matrices: Tensor, counts: Tensor, dtype: torch.dtype) -> Tensor:
    y: Tensor = npu.npu_grouped_matmul(
        *([rows], [matrices]),
        group_list=counts,
        group_list_type=1,
        group_type=0,
        split_item=2,
        output_dtype=dtype,
    )[0]
    return y


def multiplied_together(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    gate_up: ExpertStack,
    down: ExpertStack,
    activation: Callable[[Tensor], Tensor],
) -> Tensor:
    """Compute `Ops.moe_experts` for experts that are stacked."""
    rows, places, counts, _ = npu.npu_moe_init_routing_v2(
        *(x, chosen.int()),
        active_num=chosen.numel(),
        expert_num=gate_up.total,
        drop_pad_mode=0,
        quant_mode=-1,
        expert_tokens_num_type=1,
        expert_tokens_num_flag=True,
        row_idx_type=0,
        active_expert_range=[gate_up.first, gate_up.first + len(gate_up.matrices)],
    )
    outer = down.product(activation(gate_up.product(rows, counts)), counts)
    weights = weights.to(x.dtype)
    if not gate_up.is_all:
        # Choices of experts of other ranks count for nothing; in their rows there may be anything, even NaN.
        here = torch.arange(len(outer), device=x.device) < counts.sum()
        outer = outer.masked_fill(~here[:, None], 0.0)
        weights = weights.masked_fill((places < 0).view_as(weights), 0.0)
        places = places.clamp(min=0)
    y: Tensor = npu.npu_moe_token_unpermute(outer, places, probs=weights)
    return y
