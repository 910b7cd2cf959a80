"""The memory behind KV blocks."""

from __future__ import annotations

import torch

from tilewise.models.config import DecoderConfig
from tilewise.models.internvl import InternVL
from tilewise.platforms.kv_cache import KV_DTYPES, LayerCache, bytes_per_head, empty_cache
from tilewise.step import Limits


def allocate_caches(model: InternVL, limits: Limits, device: torch.device) -> list[LayerCache]:
    """Allocate one cache a layer: [2 (key, value), blocks, tokens a block, key/value heads, head width]."""
    config = model.config.decoder
    shape = (2, limits.num_blocks, limits.block_size, model.decoder.num_kv_heads, config.head_dim)
    dtype = kept_dtype(limits.kv_cache_dtype, model.decoder.dtype)
    return [empty_cache(shape, dtype, device) for _ in range(model.decoder.num_layers)]


def token_bytes(config: DecoderConfig, kv_cache_dtype: str | None, dtype: torch.dtype) -> int:
    """Return the bytes of a token's keys and values in all layers, for a model that computes in `dtype`."""
    head = bytes_per_head(config.head_dim, kept_dtype(kv_cache_dtype, dtype))
    return 2 * config.num_layers * config.num_kv_heads * head


def kept_dtype(kv_cache_dtype: str | None, dtype: torch.dtype) -> torch.dtype:
    """Return `Limits.kv_cache_dtype` as torch has it; None stands for `dtype`, in which the model computes."""
    return dtype if kv_cache_dtype is None else KV_DTYPES[kv_cache_dtype]
