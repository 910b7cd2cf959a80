"""Caches of keys and values in 8 bits, against float64 and against E4M3 as its definition lists it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.platforms.test_ops import BLOCK, SEQUENCES, TOLERANCE, all_ops, attention_by_tokens, layout_of, noise
from tilewise.platforms.cpu import CpuPlatform
from tilewise.platforms.kv_cache import (
    KV_DTYPES,
    PagedLayout,
    QuantisedCache,
    bytes_per_head,
    empty_cache,
    quantise,
    read_blocks,
)
from tilewise.platforms.ops import Ops

both_kinds = pytest.mark.parametrize("kind", KV_DTYPES)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def float8_numbers() -> np.ndarray:
    """What bytes 0 to 126 stand for (OCP 8-bit Floating Point Specification, E4M3): 127 is no number."""
    exponents, fractions = np.divmod(np.arange(127), 8)
    return np.where(exponents == 0, fractions / 8 * 2.0**-6, (1 + fractions / 8) * 2.0 ** (exponents - 7.0))


def nearest(x: np.ndarray, kind: str) -> np.ndarray:
    """Each number as the nearest that there is, of two as near the one with an even code."""
    grid = np.arange(128.0) if kind == "int8" else float8_numbers()
    distance = np.abs(np.abs(x)[..., None] - grid)
    codes = np.arange(len(grid))
    best = np.where(distance == distance.min(-1, keepdims=True), codes % 2 * 1000 + codes, 10**6).argmin(-1)
    return np.sign(x) * grid[best]


def dequantised(numbers: Tensor, scales: Tensor) -> Tensor:
    return numbers.double() * scales.double().unsqueeze(-1)


@both_kinds
@both_dtypes
def test_rows_are_rounded_to_the_nearest(kind: str, dtype: torch.dtype) -> None:
    x = noise(40, 3, 64, dtype=dtype) * torch.logspace(-8, 8, 40)[:, None, None].to(dtype)
    x[5] = 0
    x[6, :, 1:] *= 1e-5  # far below the largest, where float8 has less than its four bits
    numbers, scales = quantise(x, KV_DTYPES[kind])
    largest = 127 if kind == "int8" else 448
    true = x.double() / (x.double().abs().amax(-1, keepdim=True) / largest).clamp(min=1e-300)
    expected = torch.from_numpy(nearest(true.numpy(), kind))
    # Within float32's rounding of a tie, either neighbour is right.
    step = torch.where(expected.abs() < 2**-6, 2**-9, expected.abs() / 8) if kind == "fp8" else torch.tensor(1.0)
    off = (numbers.double() - true).abs() - (expected - true).abs()
    assert (off <= 1e-5 * step).all()
    assert (numbers.double() == expected).double().mean() > 0.99
    torch.testing.assert_close(scales.double(), x.double().abs().amax(-1).clamp(min=1e-30) / largest)


@both_kinds
def test_numbers_that_are_exact_stay_exact(kind: str) -> None:
    """The whole grid in one row, half steps of int8 going to the even neighbour."""
    if kind == "int8":
        rows = torch.cat((torch.arange(-127.0, 128), torch.tensor([0.5, 1.5, -2.5, 126.5])))[None]
        expected = torch.cat((torch.arange(-127.0, 128), torch.tensor([0.0, 2.0, -2.0, 126.0])))[None]
    else:
        rows = torch.from_numpy(float8_numbers()).float()
        rows = expected = torch.cat((rows, -rows))[None]
    numbers, scales = quantise(rows, KV_DTYPES[kind])
    assert torch.equal(numbers.float(), expected)
    assert scales.tolist() == [1.0]


def test_bytes_of_a_token() -> None:
    """Keys and values of one head: 256 in bfloat16, 136 in 8 bits with two float32 scales."""
    assert 2 * bytes_per_head(64, torch.bfloat16) == 256
    assert {2 * bytes_per_head(64, dtype) for dtype in KV_DTYPES.values()} == {136}
    assert {2 * bytes_per_head(128, dtype) for dtype in KV_DTYPES.values()} == {264}
    cache = empty_cache((2, 5, 16, 3, 64), torch.int8, torch.device("cpu"))
    assert isinstance(cache, QuantisedCache)
    assert cache.numbers.nbytes + cache.scales.nbytes == 5 * 16 * 3 * 136


def quantised_cache(
    sequences: Sequence[tuple[int, int]], layout: PagedLayout, blocks: int, heads: int, width: int, kind: str
) -> tuple[QuantisedCache, list[Tensor]]:
    """A cache with NaN for a scale where no token is, and each sequence's keys and values [2, length, K, D]."""
    cache = empty_cache((2, blocks, BLOCK, heads, width), KV_DTYPES[kind], torch.device("cpu"))
    assert isinstance(cache, QuantisedCache)
    cache.numbers.view(torch.int8).zero_()
    cache.scales.fill_(float("nan"))
    dense = []
    for row, (before, count) in enumerate(sequences):
        numbers, scales = quantise(noise(2, before + count, heads, width, seed=row), KV_DTYPES[kind])
        dense.append(dequantised(numbers, scales))
        for at in range(before + count):
            place = (slice(None), layout.block_table[row, at // BLOCK], at % BLOCK)
            cache.numbers.view(torch.int8)[place] = numbers.view(torch.int8)[:, at]
            cache.scales[place] = scales[:, at]
    return cache, dense


@all_ops
@both_kinds
@both_dtypes
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("sequences", SEQUENCES.values(), ids=SEQUENCES)
def test_attention_is_that_over_what_the_cache_stands_for(
    ops: Ops, kind: str, dtype: torch.dtype, window: int | None, sequences: list[tuple[int, int]]
) -> None:
    heads, kv_heads, width = 6, 2, 6
    layout, blocks = layout_of(sequences)
    cache, dense = quantised_cache(sequences, layout, blocks, kv_heads, width, kind)
    query = noise(len(layout.kv_slots), heads, width, seed=99, dtype=dtype)
    sinks = None if window is None else noise(heads, seed=5, dtype=dtype)
    found = ops.paged_attention(query, cache, layout, width**-0.5, window, sinks)
    expected = attention_by_tokens(query, dense, sequences, width**-0.5, window, sinks)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@all_ops
@both_kinds
@both_dtypes
@pytest.mark.parametrize("width", [6, 64, 80])
def test_rotated_keys_and_values_are_kept_within_half_a_step(
    ops: Ops, kind: str, dtype: torch.dtype, width: int
) -> None:
    """Where the tokens stand, and nowhere else; queries are not rounded."""
    layout, blocks = layout_of([(3, 6), (0, 2)])
    query, key, value = (noise(8, heads, width, seed=heads, dtype=dtype) for heads in (4, 2, 2))
    angles = noise(8, width // 2, seed=7)
    cache = empty_cache((2, blocks, BLOCK, 2, width), KV_DTYPES[kind], torch.device("cpu"))
    assert isinstance(cache, QuantisedCache)
    cache.numbers.view(torch.int8).fill_(77)
    cache.scales.fill_(5)
    turned = ops.rope_into_cache(query, key, value, angles.cos(), angles.sin(), cache, layout)

    def rotation(x: Tensor) -> Tensor:
        cos, sin = angles.double().cos()[:, None], angles.double().sin()[:, None]
        first, second = x.double().chunk(2, -1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)

    torch.testing.assert_close(turned.double(), rotation(query), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    exact = torch.stack((rotation(key), value.double()))
    flat = dequantised(cache.numbers.float(), cache.scales).view(2, -1, 2, width)[:, layout.kv_slots]
    largest = exact.abs().amax(-1, keepdim=True)
    step = largest / 127 if kind == "int8" else torch.maximum(exact.abs() / 8, largest / 448 * 2**-9)
    before = 0 if dtype == torch.float32 else exact.abs() * 2**-8
    assert ((flat - exact).abs() <= 0.501 * step + before + 1e-6).all()
    others = torch.ones(blocks * BLOCK, dtype=torch.bool)
    others[layout.kv_slots] = False
    assert (cache.numbers.view(torch.int8).view(2, -1, 2, width)[:, others] == 77).all()
    assert (cache.scales.view(2, -1, 2)[:, others] == 5).all()


@pytest.mark.parametrize("ops", [CpuPlatform().ops(), Ops()], ids=lambda ops: type(ops).__name__)
@both_kinds
def test_what_is_no_number_stays_none_and_harms_no_other_head(ops: Ops, kind: str) -> None:
    layout, blocks = layout_of([(0, 1)] * 3)
    query, key, value = noise(3, 2, 64), noise(3, 2, 64, seed=1), noise(3, 2, 64, seed=2)
    key[1, 0, 5], value[2, 1, 63] = float("nan"), float("inf")
    cache = empty_cache((2, blocks, BLOCK, 2, 64), KV_DTYPES[kind], torch.device("cpu"))
    ones = torch.ones(3, 32)
    ops.rope_into_cache(query, key, value, ones, 0 * ones, cache, layout)
    found = ops.paged_attention(query, cache, layout, 0.125)
    assert found.isfinite().all(-1).tolist() == [[True, True], [False, True], [True, False]]


@both_kinds
def test_blocks_are_read_in_the_order_of_their_numbers(kind: str) -> None:
    numbers, scales = quantise(noise(2, 4, BLOCK, 3, 8), KV_DTYPES[kind])
    found = read_blocks(QuantisedCache(numbers, scales), torch.tensor([3, 0]), torch.float32)
    expected = dequantised(numbers.float(), scales)
    assert torch.equal(found.double(), torch.cat((expected[:, 3], expected[:, 0]), 1).float().double())
