"""The ops: the functions that a device may compute in its own way, about twenty, and nothing else of a model.

`Ops` declares each of them once, with shapes and the source of its formula, and computes it in plain torch: slow where
it has to be, right everywhere. That is the oracle of the tests, and what a platform falls back to; a platform overrides
the ops that it does better. `TorchOps` is what torch itself has fused, for a device without kernels of ours.

Shape letters: N tokens, S sequences, A query heads, K key/value heads, D head width, B blocks, P tokens a block.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tilewise.platforms.draw import CPU_ROWS, Draw, draw
from tilewise.platforms.forms import Form
from tilewise.platforms.kv_cache import LayerCache, PagedLayout, read_blocks, write_rows
from tilewise.platforms.weights import Use, Weight, as_it_came, rounded_to_int8

INVARIANT_ROWS = 32
"""Rows of a panel, which batch-invariant ops compute at a time. Every product of the decoder then has this many rows,
and the token at position p of its sequence stands in row p % INVARIANT_ROWS. Every 32nd row of a matrix, whatever its
width and dtype, starts on a cache line."""
SWIGLU_LIMIT, SWIGLU_ALPHA = 7.0, 1.702
"""Bound on gate and up of `Ops.clamped_swiglu`, and the factor on the gate in its sigmoid."""


@dataclass(frozen=True, slots=True)
class AttentionSize:
    """The sizes of one attention that its memory depends on: over one sequence, or over several tiles at once."""

    queries: int
    keys: int
    heads: int
    kv_heads: int
    width: int
    itemsize: int
    """Bytes of a number."""
    plain: bool = True
    """True if there is neither a window nor sinks."""
    tiles: int = 1
    quantised: bool = False
    """True if keys and values come from a cache of 8 bits."""


@dataclass(frozen=True, slots=True)
class ExpertSize:
    """The sizes of a layer of experts that its memory depends on."""

    tokens: int
    per_token: int
    """Experts that a token goes through."""
    hidden: int
    inner: int
    itemsize: int
    """Bytes of a number."""


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """The RMS norms of heads, before they are rotated (Qwen3)."""

    query: Tensor
    """[D]."""
    key: Tensor
    """[D]."""
    eps: float


def choices_bytes(size: ExpertSize) -> int:
    """Return the bytes of both products of all choices (a token and one of its experts), kept at once: what comes out
    of the activation, in the model's dtype and in int8, the results, and places and weights of the choices.
    """
    choices = size.tokens * size.per_token
    return choices * ((size.inner + size.hidden) * size.itemsize + size.inner + 16) + size.tokens * size.hidden


_WIDEST_ACTIVATION = 7
"""Tensors [rows, inner width] of the widest activation, gpt-oss' clamped SwiGLU: gate_up, gate, up, and three more."""


class Ops:
    """The ops in plain torch, by which all others are tested. Softmax is spelled out; nothing depends on a device."""

    drawn_at_once = CPU_ROWS
    """Rows of logits that `draw` takes at a time."""

    @property
    def arithmetic(self) -> str:
        """A name of how these ops round, which two that give different numbers do not share."""
        return type(self).__name__

    def store(self, parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
        """Keep a matrix in the form that it has, in whatever order the device reads best: a `Store`."""
        return as_it_came(parts, bias)

    def store_int8(self, parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
        """Keep floats rounded to int8, with a scale for each output, to be multiplied with rows that are rounded as
        they come; keep other forms as they are: a `Store`.
        """
        return as_it_came([rounded_to_int8(part) for part in parts], bias)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return x [..., in] @ weight [out, in].T + bias [out]."""
        return F.linear(x, weight, bias)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return x / sqrt(mean(x^2) + eps), over the last axis in float32 and cast back, times weight."""
        x32 = x.float()
        normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
        return normed.to(x.dtype) * weight

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    def gelu(self, x: Tensor) -> Tensor:
        """Return GELU of x in its exact (erf) form."""
        return F.gelu(x)

    def linear_gelu(self, x: Tensor, weight: Weight) -> Tensor:
        """Return `gelu` of x [..., in] multiplied by a weight."""
        return self.gelu(weight.apply(x, self))

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """Multiply silu of the first half by the second: [..., 2F] -> [..., F]."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def clamped_swiglu(self, gate_up: Tensor) -> Tensor:
        """Return (up + 1) * gate * sigmoid(1.702 * gate): [..., 2F] -> [..., F].

        The first half, gate, is clamped to at most 7, and the second, up, to between -7 and 7.
        Source: `swiglu` of openai/gpt-oss.
        """
        gate, up = gate_up.chunk(2, dim=-1)
        gate, up = gate.clamp(max=SWIGLU_LIMIT), up.clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT)
        return (up + 1) * gate * torch.sigmoid(SWIGLU_ALPHA * gate)

    def add_scaled(self, x: Tensor, scale: Tensor | None, y: Tensor) -> Tensor:
        """Return x + scale [width] * y, or x + y where scale is None."""
        return x + y if scale is None else x + scale * y

    def add_rms_norm(
        self, x: Tensor, scale: Tensor | None, y: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return the sum of `add_scaled`, and `rms_norm` of it."""
        total = self.add_scaled(x, scale, y)
        return total, self.rms_norm(total, weight, eps)

    def add_layer_norm(
        self, x: Tensor, scale: Tensor | None, y: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return the sum of `add_scaled`, and `layer_norm` of it."""
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
        norms: HeadNorms | None = None,
    ) -> Tensor:
        """Rotate query [N, A, D] and key [N, K, D] by cos, sin [N, D/2] (float32), halves paired (i, i + D/2).

        With `norms`, each head goes through `rms_norm` first. Rotated keys, and values [N, K, D], are written to the
        layer's cache [2, B, P, K, D] in the form in which it keeps them; rotated queries are returned.
        """
        query, key = self._normed_heads(query, key, norms)
        write_rows(cache, layout.kv_slots, rotated(key, cos, sin), value)
        return rotated(query, cos, sin)

    def _normed_heads(self, query: Tensor, key: Tensor, norms: HeadNorms | None) -> tuple[Tensor, Tensor]:
        if norms is None:
            return query, key
        return self.rms_norm(query, norms.query, norms.eps), self.rms_norm(key, norms.key, norms.eps)

    def paged_attention(
        self,
        query: Tensor,
        cache: LayerCache,
        layout: PagedLayout,
        scale: float,
        window: int | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Attend causally from query [N, A, D] to the cached tokens of each row's own sequence -> [N, A, D].

        A query sees `window` tokens back at most, itself included; `sinks` [A] are logits without a value.
        """
        out = torch.empty_like(query)
        stops = itertools.accumulate(layout.host_counts)
        for row, (stop, count, seq_len) in enumerate(zip(stops, layout.host_counts, layout.host_lengths, strict=True)):
            chunk = slice(stop - count, stop)
            blocks = layout.block_table[row, : -(-seq_len // cache.shape[2])]
            key, value = read_blocks(cache, blocks, query.dtype)[:, :seq_len]
            out[chunk] = self._causal_attention(query[chunk], key, value, scale, window, sinks)
        return out

    def paged_scratch(self, size: AttentionSize) -> int:
        """Return the bytes that `paged_attention` takes for one sequence at most, beside its arguments and result."""
        # Count scores thrice in float32 (as they are, with sinks, as weights), int64 distances and a mask of bools.
        pairs = size.queries * size.keys
        return pairs * (12 * size.heads + 9) + gathered_bytes(size)

    def _causal_attention(
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
        """Attend from every query [tiles, n, A, D] to all key, value [tiles, m, A, D] of its tile -> query's shape."""
        scores = torch.einsum("tnad,tmad->tanm", query, key).float() * scale
        return torch.einsum("tanm,tmad->tnad", scores.softmax(-1).to(query.dtype), value)

    def dense_scratch(self, size: AttentionSize) -> int:
        """Return the bytes that `dense_attention` takes at most, beside its arguments and result."""
        # Count scores twice in float32, and once in the dtype in which they are multiplied.
        return size.tiles * size.heads * size.queries * size.keys * (8 + size.itemsize)

    def choose_experts(self, logits: Tensor, count: int, renormalise: bool) -> tuple[Tensor, Tensor]:
        """Choose the `count` likeliest of E experts by logits float32 [N, E], the likeliest first.

        Return their weights, float32 [N, count], by a softmax over those chosen (`renormalise`) or over all, and their
        numbers, int64 [N, count].
        """
        scores, chosen = logits.topk(count, dim=-1)
        if renormalise:
            return scores.softmax(-1), chosen
        return (scores - logits.logsumexp(-1, keepdim=True)).exp(), chosen

    def moe_experts(
        self,
        x: Tensor,
        chosen: Tensor,
        weights: Tensor,
        gate_up: Sequence[Weight | None],
        down: Sequence[Weight | None],
        activation: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Send x [N, H] through its chosen experts (int64 [N, k]), and sum up what they give by weights [N, k].

        An expert's gate_up is [2F, H] and its down [H, F]; activation maps [n, 2F] -> [n, F]. Experts that are None
        add nothing: another rank has them.
        """
        out = torch.zeros_like(x)
        for expert in chosen.unique().tolist():
            first, second = gate_up[expert], down[expert]
            if first is None or second is None:
                continue
            rows, places = (chosen == expert).nonzero(as_tuple=True)
            outer = self._expert(x, rows, first, second, activation)
            out.index_add_(0, rows, outer * weights[rows, places, None].to(x.dtype))
        return out

    def moe_scratch(self, size: ExpertSize) -> int:
        """Return the bytes that `moe_experts` takes at most, beside its arguments and result."""
        # Count rows and results of one expert, should all tokens go to it: around the activation, and behind it.
        hidden, inner = (size.tokens * width * size.itemsize for width in (size.hidden, size.inner))
        return hidden + max(hidden + _WIDEST_ACTIVATION * inner, inner + 3 * hidden)

    def _expert(
        self, x: Tensor, rows: Tensor, gate_up: Weight, down: Weight, activation: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Send some rows of x [N, H] through one expert -> [rows, H]."""
        return down.apply(activation(gate_up.apply(x[rows], self)), self)

    def draw(self, logits: Tensor, draws: Sequence[Draw]) -> Tensor:
        """Draw token ids int64 [draws], each by its own settings, from float32 logits [all rows, vocabulary]."""
        return draw(logits, draws, self.drawn_at_once)

    def patchify(self, pixels: Tensor, patch: int, mean: Tensor, std: Tensor) -> Tensor:
        """Cut uint8 [tiles, H, W, 3] into normalised patches, float32 [tiles, H/p * W/p, 3*p*p], channel-major."""
        normalised = (pixels.float() / 255 - mean) / std
        tiles, height, width, channels = normalised.shape
        cells = normalised.view(tiles, height // patch, patch, width // patch, patch, channels)
        return cells.permute(0, 1, 3, 5, 2, 4).reshape(tiles, -1, channels * patch * patch)

    def scatter_rows(self, target: Tensor, rows: Tensor, source: Tensor, source_rows: Tensor) -> None:
        """Set target[rows] = source[source_rows]."""
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


OPS = tuple(name for name, op in vars(Ops).items() if callable(op) and name[0] != "_" and not name.endswith("_scratch"))
"""Names of the ops, without the functions that tell how much memory one takes."""


class TorchOps(Ops):
    """The reference with attention by torch's flash kernels, which keep no score matrix; equal within rounding.

    Those kernels know neither windows nor sinks: with them, the reference computes a slice of the queries at a time, as
    the scores of all could be larger than the model.
    """

    score_bytes = 2**28
    """Bytes that the scores of a slice, thrice in float32, may take."""

    def _causal_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        if window is not None or sinks is not None:
            return self._in_slices(query, key, value, scale, window, sinks)
        n, m, groups = len(query), len(key), query.shape[1] // key.shape[1]
        q = query.transpose(0, 1).unsqueeze(0)
        k = key.repeat_interleave(groups, dim=1).transpose(0, 1).unsqueeze(0)
        v = value.repeat_interleave(groups, dim=1).transpose(0, 1).unsqueeze(0)
        # A chunk after a prefix needs a mask that starts in the middle; whole prompts and single tokens need none.
        past = torch.ones(n, m, dtype=torch.bool, device=query.device).tril(m - n) if 1 < n < m else None
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=past, is_causal=n == m, scale=scale)
        return out.squeeze(0).transpose(0, 1)

    def _in_slices(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, sinks: Tensor | None
    ) -> Tensor:
        # Queries are the last tokens of the keys that they are given, so a slice gets the keys up to its own end.
        before, parts = len(key) - len(query), []
        for part in query.split(self._slice_length(query.shape[1], len(key))):
            before += len(part)
            parts.append(super()._causal_attention(part, key[:before], value[:before], scale, window, sinks))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _slice_length(self, heads: int, keys: int) -> int:
        """Return the number of queries of a slice; not too few, as keys are copied for each slice."""
        return max(16, self.score_bytes // (12 * heads * keys))

    def paged_scratch(self, size: AttentionSize) -> int:
        """Count no scores, but the mask: as bools, as their opposites, and as numbers of the model's dtype."""
        if not size.plain:
            inside = min(size.queries, self._slice_length(size.heads, size.keys))
            results = 2 * size.queries * size.heads * size.width * size.itemsize
            return results + super().paged_scratch(replace(size, queries=inside))
        return size.queries * size.keys * (2 + size.itemsize) + gathered_bytes(size)

    def dense_attention(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value, scale=scale).transpose(1, 2)

    def dense_scratch(self, size: AttentionSize) -> int:
        return 0


def overrides(ops: type[TorchOps], op: str) -> bool:
    """Return whether ops have something else for an op than torch's."""
    return getattr(ops, op) is not getattr(TorchOps, op)
