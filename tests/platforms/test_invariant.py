"""Batch-invariant ops: to the last bit, a row's numbers depend on its own content and place alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.platforms.test_ops import BLOCK, experts, noise
from tilewise.platforms.cpu.invariant import InvariantCpuOps
from tilewise.platforms.kv_cache import PagedLayout
from tilewise.platforms.ops import INVARIANT_ROWS

OPS = InvariantCpuOps()
WIDTH, LENGTH = 200, 150


def linear(x: Tensor) -> Tensor:
    return OPS.linear(x, noise(333, WIDTH, seed=1, dtype=x.dtype), noise(333, seed=2, dtype=x.dtype))


def rms_norm(x: Tensor) -> Tensor:
    return OPS.rms_norm(x, noise(WIDTH, seed=1, dtype=x.dtype), 1e-6)


def silu_mul(x: Tensor) -> Tensor:
    return OPS.silu_mul(x)


def moe_experts(x: Tensor) -> Tensor:
    """Six experts, two a row, with biases; zero rows have their favourites too."""
    gate_up, down = noise(6, 180, WIDTH, seed=3, dtype=x.dtype), noise(6, WIDTH, 90, seed=4, dtype=x.dtype)
    biases = noise(6, 180, seed=5, dtype=x.dtype), noise(6, WIDTH, seed=6, dtype=x.dtype)
    weights, chosen = OPS.linear(x.float(), noise(6, WIDTH, seed=7), None).softmax(-1).topk(2)
    return experts(OPS, x, chosen, weights, (gate_up, biases[0]), (down, biases[1]), activation=OPS.silu_mul)


both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@both_dtypes
@pytest.mark.parametrize("op", [linear, rms_norm, silu_mul, moe_experts])
def test_a_row_alone_equals_the_row_in_company(op, dtype):
    """In the last of three panels, in the only one, and with nothing but zeros around it."""
    x = noise(3 * INVARIANT_ROWS, WIDTH, dtype=dtype)
    expected = op(x)[70]
    assert torch.equal(op(x[64:])[6], expected)
    padding = torch.zeros_like(x[:INVARIANT_ROWS])
    padding[6] = x[70]
    assert torch.equal(op(padding)[6], expected)


def attended(first: int, stop: int, seq_len: int, dtype: torch.dtype, window: int | None, sinks: Tensor | None):
    """Positions [first, stop) of a sequence of which `seq_len` are known; all else in the cache is NaN."""
    blocks = -(-seq_len // BLOCK)
    cache = torch.full((2, blocks + 1, BLOCK, 2, 34), float("nan"), dtype=dtype)
    flat = cache.view(2, -1, 2, 34)
    flat[:, BLOCK : BLOCK + seq_len] = noise(2, LENGTH, 2, 34, dtype=dtype)[:, :seq_len]
    query = noise(LENGTH, 6, 34, seed=1, dtype=dtype)[first:stop]
    table, rows = torch.arange(1, blocks + 1).unsqueeze(0), torch.arange(3, 3 + len(query))
    layout = PagedLayout(torch.tensor([0, len(query)]), torch.tensor([stop]), table, torch.zeros(0), rows)
    padded = query.new_ones(3 + len(query) + 5, 6, 34)
    padded[rows] = query
    out = OPS.paged_attention(padded, cache, layout, 0.2, window, sinks)
    assert not out[:3].any()
    assert not out[3 + len(query) :].any()
    return out[rows]


@both_dtypes
@pytest.mark.parametrize("kind", ["plain", "window and sinks"])
@pytest.mark.parametrize(("first", "stop"), [(149, 150), (64, 65), (31, 33), (20, 90), (97, 128)])
def test_positions_computed_apart_equal_the_whole(kind, first, stop, dtype):
    """Whatever stands behind them: nothing yet, or the rest of the sequence."""
    window, sinks = (None, None) if kind == "plain" else (40, noise(6, seed=2, dtype=dtype))
    whole = attended(0, LENGTH, LENGTH, dtype, window, sinks)
    assert torch.equal(attended(first, stop, stop, dtype, window, sinks), whole[first:stop])
