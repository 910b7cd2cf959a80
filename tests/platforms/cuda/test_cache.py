"""Rotation into the paged cache against the reference op."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tilewise.platforms.cuda.kernels.cache import rope_into_cache
from tilewise.platforms.kv_cache import KV_DTYPES, LayerCache, PagedLayout, empty_cache
from tilewise.platforms.ops import HeadNorms, Ops

REFERENCE = Ops()
BLOCKS, BLOCK = 5, 4
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SIZES = [(1, 2, 1, 16), (3, 14, 2, 64), (5, 4, 4, 24), (2, 32, 8, 128), (0, 2, 1, 16), (7, 3, 3, 2)]
"""Tokens, query heads, key heads, width."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parts(cache: LayerCache) -> list[Tensor]:
    """What the cache keeps, in types that can be compared."""
    return [cache] if isinstance(cache, Tensor) else [cache.numbers.view(torch.uint8), cache.scales]


def cleared_caches(heads: int, width: int, dtype: torch.dtype, device: torch.device) -> list[LayerCache]:
    caches = [empty_cache((2, BLOCKS, BLOCK, heads, width), dtype, device) for _ in range(2)]
    for part in (part for cache in caches for part in parts(cache)):
        part.zero_()
    return caches


@pytest.mark.parametrize(
    ("size", "kept", "dtype"),
    [
        (size, kept, DTYPES[(row + column) % 3])  # each size meets each dtype, and so does each form that is kept
        for row, size in enumerate(SIZES)
        for column, kept in enumerate((None, "int8", "fp8"))
    ],
    ids=str,
)
def test_rope_into_cache(
    size: tuple[int, int, int, int], dtype: torch.dtype, kept: str | None, device: torch.device
) -> None:
    tokens, heads, kv_heads, width = size
    qkv = (3 * noise(tokens, (heads + 2 * kv_heads) * width)).to(device, dtype)
    split = qkv.split((heads * width, kv_heads * width, kv_heads * width), dim=-1)
    query, key, value = (part.unflatten(-1, (-1, width)) for part in split)
    value[..., -1:, :] = 0
    angles = noise(tokens, width // 2, seed=1).to(device)
    slots = torch.randperm(BLOCKS * BLOCK, generator=torch.Generator().manual_seed(2))[:tokens].to(device)
    layout = PagedLayout(slots, slots, slots, slots)
    ours, theirs = cleared_caches(kv_heads, width, KV_DTYPES[kept] if kept else dtype, device)
    turned = rope_into_cache(query, key, value, angles.cos(), angles.sin(), ours, layout)
    expected = REFERENCE.rope_into_cache(query, key, value, angles.cos(), angles.sin(), theirs, layout)
    assert turned.is_contiguous()
    assert torch.equal(turned, expected)
    for found, wanted in zip(parts(ours), parts(theirs), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(("size", "dtype"), [(size, DTYPES[row % 3]) for row, size in enumerate(SIZES)], ids=str)
@pytest.mark.parametrize("kept", [None, "int8"])
def test_heads_are_normed_first(
    size: tuple[int, int, int, int], dtype: torch.dtype, kept: str | None, device: torch.device
) -> None:
    """Within what another order of the sum of squares rounds: a step of the dtype, and a code of the cache."""
    tokens, heads, kv_heads, width = size
    qkv = (3 * noise(tokens, heads + 2 * kv_heads, width)).to(device, dtype)
    query, key, value = qkv.split((heads, kv_heads, kv_heads), dim=1)
    angles = noise(tokens, width // 2, seed=1).to(device)
    slots = torch.randperm(BLOCKS * BLOCK, generator=torch.Generator().manual_seed(2))[:tokens].to(device)
    layout = PagedLayout(slots, slots, slots, slots)
    norms = HeadNorms(*(1 + noise(width, seed=seed).to(device, dtype) for seed in (3, 4)), 1e-6)
    ours, theirs = cleared_caches(kv_heads, width, KV_DTYPES[kept] if kept else dtype, device)
    arguments = (query, key, value, angles.cos(), angles.sin())
    turned = rope_into_cache(*arguments, ours, layout, norms)
    expected = REFERENCE.rope_into_cache(*arguments, theirs, layout, norms)
    step = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(turned, expected, atol=step, rtol=step)
    for found, wanted in zip(parts(ours), parts(theirs), strict=True):
        if found.dtype == torch.uint8:
            assert (found.view(torch.int8).int() - wanted.view(torch.int8).int()).abs().max() <= 1
        else:
            torch.testing.assert_close(found, wanted, atol=step, rtol=step)
