"""The memory behind KV blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from tilewise.models.internvl import InternVL
from tilewise.step import Limits


def allocate_caches(model: InternVL, limits: Limits, device: torch.device) -> list[Tensor]:
    """One cache a layer: [2 (key, value), blocks, tokens a block, key/value heads, head width]."""
    config = model.config.decoder
    shape = (2, limits.num_blocks, limits.block_size, config.num_kv_heads, config.head_dim)
    dtype = model.decoder.embedding.dtype
    return [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
