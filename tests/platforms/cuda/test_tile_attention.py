"""Attention within tiles against the reference in float64."""

from __future__ import annotations

import pytest
import torch

from tilewise.platforms.cuda.kernels.attention import dense_attention
from tilewise.platforms.ops import Ops

REFERENCE = Ops()
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}
"""Of numbers around 1: weights are rounded to the dtype, and so is the result."""
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def assert_agrees(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tolerance: float | None = None) -> None:
    scale = query.shape[-1] ** -0.5
    mine = dense_attention(query, key, value, scale)
    theirs = REFERENCE.dense_attention(query.double(), key.double(), value.double(), scale)
    tolerance = tolerance or TOLERANCE[query.dtype]
    assert mine.shape == query.shape
    assert mine.is_contiguous()
    torch.testing.assert_close(mine.double(), theirs, rtol=tolerance, atol=tolerance)


@dtypes
@pytest.mark.parametrize(
    ("tiles", "tokens", "heads", "width"),
    [(2, 65, 3, 64), (1, 145, 2, 64), (1, 257, 1, 128), (2, 64, 2, 80), (1, 50, 2, 96), (2, 1, 2, 16), (0, 5, 2, 64)],
)
def test_parts_of_one_row(
    tiles: int, tokens: int, heads: int, width: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Queries, keys and values stand beside one another, as the tower's product leaves them."""
    torch.manual_seed(tokens)
    qkv = torch.randn(tiles, tokens, 3 * heads * width).to(device, dtype)
    assert_agrees(*(part.unflatten(-1, (heads, width)) for part in qkv.chunk(3, dim=-1)))


@dtypes
@pytest.mark.parametrize(("queries", "keys"), [(1, 257), (40, 7), (130, 96)])
def test_other_keys_than_queries(queries: int, keys: int, dtype: torch.dtype, device: torch.device) -> None:
    query, key, value = (torch.randn(2, n, 2, 64).to(device, dtype) for n in (queries, keys, keys))
    assert_agrees(query, key, value)


def test_one_query_for_all_tiles(device: torch.device) -> None:
    query = torch.randn(1, 1, 2, 64, device=device).expand(3, -1, -1, -1)
    key, value = (torch.randn(3, 70, 2, 64, device=device) for _ in range(2))
    assert_agrees(query, key, value)


def test_scores_of_any_size(device: torch.device) -> None:
    """Far from 0 on either side, where powers of two alone would overflow or vanish.

    Scores of some hundreds have four decimals behind the point in float32, and weights no more places than those.
    """
    query, key, value = (torch.randn(1, 80, 2, 64, device=device) for _ in range(3))
    assert_agrees(query, key * 50, value, 1e-3)
    assert_agrees(query.abs() + 10, -key.abs() * 20, value, 1e-3)


def test_no_tile_sees_another(device: torch.device) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 70, 2, 64, device=device) for _ in range(3))
    alone = dense_attention(query[1:], key[1:], value[1:], 0.125)
    key[0], value[0] = 1e4, -1e30
    assert torch.equal(dense_attention(query, key, value, 0.125)[1:], alone)
