"""Every op in plain torch: slow where it has to be, right everywhere."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tilewise.platforms.base import SWIGLU_ALPHA, SWIGLU_LIMIT, AttentionSize, PagedLayout, Use, Weight
from tilewise.platforms.draw import Draw, draw
from tilewise.platforms.forms import Form
from tilewise.platforms.kv_cache import LayerCache, read_blocks, write_rows
from tilewise.platforms.weights import as_it_came, rounded_to_int8


class ReferenceOps:
    """The ops in plain torch, by which all others are tested. Softmax is spelled out; nothing depends on a device."""

    def store(self, parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
        return as_it_came(parts, bias)

    def store_int8(self, parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
        return as_it_came([rounded_to_int8(part) for part in parts], bias)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x32 = x.float()
        normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
        return normed.to(x.dtype) * weight

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    def gelu(self, x: Tensor) -> Tensor:
        return F.gelu(x)

    def linear_gelu(self, x: Tensor, weight: Weight) -> Tensor:
        return self.gelu(weight.apply(x, self))

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def clamped_swiglu(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        gate, up = gate.clamp(max=SWIGLU_LIMIT), up.clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT)
        return (up + 1) * gate * torch.sigmoid(SWIGLU_ALPHA * gate)

    def add_scaled(self, x: Tensor, scale: Tensor | None, y: Tensor) -> Tensor:
        return x + y if scale is None else x + scale * y

    def add_rms_norm(
        self, x: Tensor, scale: Tensor | None, y: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        total = self.add_scaled(x, scale, y)
        return total, self.rms_norm(total, weight, eps)

    def add_layer_norm(
        self, x: Tensor, scale: Tensor | None, y: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        total = self.add_scaled(x, scale, y)
        return total, self.layer_norm(total, weight, bias, eps)

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
        write_rows(cache, layout.kv_slots, rotated(key, cos, sin), value)
        return rotated(query, cos, sin)

    def paged_attention(
        self,
        query: Tensor,
        cache: LayerCache,
        layout: PagedLayout,
        scale: float,
        window: int | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        out = torch.empty_like(query)
        stops = itertools.accumulate(layout.host_counts)
        for row, (stop, count, seq_len) in enumerate(zip(stops, layout.host_counts, layout.host_lengths, strict=True)):
            chunk = slice(stop - count, stop)
            blocks = layout.block_table[row, : -(-seq_len // cache.shape[2])]
            key, value = read_blocks(cache, blocks, query.dtype)[:, :seq_len]
            out[chunk] = self.causal_attention(query[chunk], key, value, scale, window, sinks)
        return out

    def paged_scratch(self, size: AttentionSize) -> int:
        """Count scores thrice in float32 (as they are, with sinks, as weights), int64 distances and a mask of bools."""
        pairs = size.queries * size.keys
        return pairs * (12 * size.heads + 9) + gathered_bytes(size)

    def causal_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Attend from query [n, A, D], the last n of the tokens of key, value [m, K, D]; each sees itself and those
        before it.
        """
        n, heads, _ = query.shape
        m, kv_heads, _ = key.shape
        key = key.repeat_interleave(heads // kv_heads, dim=1)
        value = value.repeat_interleave(heads // kv_heads, dim=1)
        scores = torch.einsum("nad,mad->anm", query, key).float() * scale
        distance = torch.arange(m - n, m, device=query.device)[:, None] - torch.arange(m, device=query.device)
        hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
        scores = scores.masked_fill(hidden, float("-inf"))
        if sinks is not None:
            column = sinks.float()[:, None, None].expand(heads, n, 1)
            weights = torch.cat((scores, column), dim=-1).softmax(-1)[..., :-1]
        else:
            weights = scores.softmax(-1)
        return torch.einsum("anm,mad->nad", weights.to(query.dtype), value)

    def dense_attention(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        scores = torch.einsum("tnad,tmad->tanm", query, key).float() * scale
        return torch.einsum("tanm,tmad->tnad", scores.softmax(-1).to(query.dtype), value)

    def dense_scratch(self, size: AttentionSize) -> int:
        """Count scores twice in float32, and once in the dtype in which they are multiplied."""
        return size.tiles * size.heads * size.queries * size.keys * (8 + size.itemsize)

    def moe_experts(
        self,
        x: Tensor,
        chosen: Tensor,
        weights: Tensor,
        gate_up: Sequence[Weight | None],
        down: Sequence[Weight | None],
        activation: Callable[[Tensor], Tensor],
    ) -> Tensor:
        out = torch.zeros_like(x)
        for expert in chosen.unique().tolist():
            first, second = gate_up[expert], down[expert]
            if first is None or second is None:
                continue
            rows, places = (chosen == expert).nonzero(as_tuple=True)
            outer = self._expert(x, rows, first, second, activation)
            out.index_add_(0, rows, outer * weights[rows, places, None].to(x.dtype))
        return out

    def _expert(
        self, x: Tensor, rows: Tensor, gate_up: Weight, down: Weight, activation: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Send some rows of x [N, H] through one expert -> [rows, H]."""
        return down.apply(activation(gate_up.apply(x[rows], self)), self)

    def draw(self, logits: Tensor, draws: Sequence[Draw]) -> Tensor:
        return draw(logits, draws)

    def patchify(self, pixels: Tensor, patch: int, mean: Tensor, std: Tensor) -> Tensor:
        normalised = (pixels.float() / 255 - mean) / std
        tiles, height, width, channels = normalised.shape
        cells = normalised.view(tiles, height // patch, patch, width // patch, patch, channels)
        return cells.permute(0, 1, 3, 5, 2, 4).reshape(tiles, -1, channels * patch * patch)

    def scatter_rows(self, target: Tensor, rows: Tensor, source: Tensor, source_rows: Tensor) -> None:
        target.index_copy_(0, rows, source.index_select(0, source_rows))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [N, heads, D] as `Ops.rope_into_cache` says, in float32 on the way."""
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def gathered_bytes(size: AttentionSize) -> int:
    """Count keys and values of one sequence out of their blocks, those again for every query head, queries and result.

    Those of a quantised cache come in 8 bits, in float32, and in float32 times their scales: 9 bytes more a number.
    """
    heads = 2 * size.keys * (size.kv_heads + size.heads) + 2 * size.queries * size.heads
    dequantising = 9 * 2 * size.keys * size.kv_heads * size.width if size.quantised else 0
    return heads * size.width * size.itemsize + dequantising
