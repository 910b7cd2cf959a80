"""TorchOps: what torch itself has fused, for a device without kernels of ours."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from tilewise.platforms.base import AttentionSize
from tilewise.platforms.reference import ReferenceOps, gathered_bytes


class TorchOps(ReferenceOps):
    """The reference with attention by torch's flash kernels, which keep no score matrix; equal within rounding.

    Those kernels know neither windows nor sinks: with them, the reference computes a slice of the queries at a time, as
    the scores of all could be larger than the model.
    """

    score_bytes = 2**28
    """Bytes that the scores of a slice, thrice in float32, may take."""

    def causal_attention(
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
            parts.append(super().causal_attention(part, key[:before], value[:before], scale, window, sinks))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _slice_length(self, heads: int, keys: int) -> int:
        """Return the number of queries of a slice; not too few, as keys are copied for each slice."""
        return max(16, self.score_bytes // (12 * heads * keys))

    def paged_scratch(self, size: AttentionSize) -> int:
        """Count no scores, but the mask: as bools, as their opposites, and as numbers of the model's dtype."""
        if not size.plain:
            inside = min(size.queries, self._slice_length(size.heads, size.keys))
            results = 2 * size.queries * size.heads * size.width * size.itemsize
            return results + super().paged_scratch(dataclasses.replace(size, queries=inside))
        return size.queries * size.keys * (2 + size.itemsize) + gathered_bytes(size)

    def dense_attention(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value, scale=scale).transpose(1, 2)

    def dense_scratch(self, size: AttentionSize) -> int:
        return 0
