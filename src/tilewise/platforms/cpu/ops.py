"""CpuOps: what torch has fused for the CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tilewise.platforms.reference import ReferenceOps


class CpuOps(ReferenceOps):
    """Attention by torch's flash kernels, which keep no score matrix; equal to the reference within rounding."""

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
            return super().causal_attention(query, key, value, scale, window, sinks)
        n, m, groups = len(query), len(key), query.shape[1] // key.shape[1]
        q = query.transpose(0, 1).unsqueeze(0)
        k = key.repeat_interleave(groups, dim=1).transpose(0, 1).unsqueeze(0)
        v = value.repeat_interleave(groups, dim=1).transpose(0, 1).unsqueeze(0)
        # A chunk after a prefix needs a mask that starts in the middle; whole prompts and single tokens need none.
        past = torch.ones(n, m, dtype=torch.bool).tril(m - n) if 1 < n < m else None
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=past, is_causal=n == m, scale=scale)
        return out.squeeze(0).transpose(0, 1)

    def dense_attention(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value, scale=scale).transpose(1, 2)
