"""Kernels of our own against float64 over odd shapes, and that a row's numbers are its own."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.platforms.test_kv_cache import quantised_cache
from tests.platforms.test_ops import attention_by_tokens, filled_cache, layout_of, noise
from tilewise.platforms.cpu import CpuPlatform
from tilewise.platforms.cpu.native import NoKernels
from tilewise.platforms.cpu.native_ops import NativeCpuOps
from tilewise.platforms.kv_cache import PagedLayout
from tilewise.platforms.ops import AttentionSize, Ops, TorchOps

OPS = CpuPlatform().ops()
assert isinstance(OPS, TorchOps)
pytestmark = pytest.mark.skipif(isinstance(CpuPlatform().kernels, NoKernels), reason="kernels cannot be built here")
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
some = settings(max_examples=25)
widths = st.sampled_from([1, 2, 6, 8, 16, 22, 40, 64, 72, 128])


def near(found: Tensor, expected: Tensor) -> None:
    """Within rounding of float32 arithmetic over a few hundred numbers; bfloat16 is rounded once, at the end."""
    tolerance = 1e-5 if found.dtype == torch.float32 else 2**-8
    torch.testing.assert_close(found.double(), expected.double(), atol=tolerance, rtol=tolerance)


def near_mixed(found: Tensor, expected: Tensor, mixed: Tensor) -> None:
    """An attention's result. In bfloat16 weights may be rounded before they are multiplied, each by a 256th at most;
    `mixed` is the attention over the values' sizes.
    """
    if found.dtype == torch.float32:
        near(found, expected)
    else:
        allowed = 2**-8 * (expected.abs() + mixed) + 1e-3 * mixed + 1e-5
        assert ((found.double() - expected).abs() <= allowed).all()


@both_dtypes
@some
@given(
    tiles=st.integers(1, 3),
    tokens=st.integers(1, 300),
    queries=st.none() | st.integers(1, 9),
    heads=st.integers(1, 3),
    width=widths,
)
def test_dense_attention_of_any_shape(
    dtype: torch.dtype, tiles: int, tokens: int, queries: int | None, heads: int, width: int
) -> None:
    """Queries, keys and values are parts of one product, as they are in the tower; a few queries, as they pool."""
    qkv = noise(tiles, tokens, 3 * heads * width, dtype=dtype)
    query, key, value = (part.unflatten(-1, (heads, width)) for part in qkv.chunk(3, dim=-1))
    query = query[:, :queries]
    q, k, v = (x.double().transpose(1, 2) for x in (query, key, value))
    weights = ((q @ k.mT) * width**-0.5).softmax(-1)
    expected, mixed = ((weights @ x).transpose(1, 2) for x in (v, v.abs()))
    near_mixed(OPS.dense_attention(query, key, value, width**-0.5), expected, mixed)


def paged(
    sequences: list[tuple[int, int]], heads: tuple[int, int], width: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, PagedLayout, list[Tensor]]:
    """Queries, a cache with NaN where no token is, its layout, and what is in it."""
    layout, blocks = layout_of(sequences)
    cache, dense = filled_cache(sequences, layout, blocks, heads[1], width, dtype)
    return noise(len(layout.kv_slots), heads[0], width, seed=99, dtype=dtype), cache, layout, dense


@both_dtypes
@some
@given(
    sequences=st.lists(st.tuples(st.integers(0, 600), st.integers(1, 30)), min_size=1, max_size=3),
    heads=st.sampled_from([(1, 1), (7, 1), (6, 2), (4, 4)]),
    width=widths,
    window=st.none() | st.integers(1, 700),
    with_sinks=st.booleans(),
)
def test_paged_attention_of_any_shape(
    dtype: torch.dtype,
    sequences: list[tuple[int, int]],
    heads: tuple[int, int],
    width: int,
    window: int | None,
    with_sinks: bool,
) -> None:
    query, cache, layout, dense = paged(sequences, heads, width, dtype)
    sinks = noise(heads[0], seed=5, dtype=dtype) if with_sinks else None
    found = OPS.paged_attention(query, cache, layout, width**-0.5, window, sinks)
    sizes = [torch.stack((keys, values.abs())) for keys, values in dense]
    expected, mixed = (attention_by_tokens(query, x, sequences, width**-0.5, window, sinks) for x in (dense, sizes))
    near_mixed(found, expected, mixed)


@both_dtypes
@some
@given(
    kind=st.sampled_from(["int8", "fp8"]),
    sequences=st.lists(st.tuples(st.integers(0, 600), st.integers(1, 30)), min_size=1, max_size=3),
    heads=st.sampled_from([(1, 1), (7, 1), (6, 2), (4, 4)]),
    width=widths,
    window=st.none() | st.integers(1, 700),
)
def test_attention_over_8_bits_of_any_shape(
    dtype: torch.dtype,
    kind: str,
    sequences: list[tuple[int, int]],
    heads: tuple[int, int],
    width: int,
    window: int | None,
) -> None:
    """Keys and values may be rounded to the dtype of the rows before they are multiplied."""
    layout, blocks = layout_of(sequences)
    cache, exact = quantised_cache(sequences, layout, blocks, heads[1], width, kind)
    query = noise(len(layout.kv_slots), heads[0], width, seed=99, dtype=dtype)
    found = OPS.paged_attention(query, cache, layout, width**-0.5, window)
    if dtype == torch.float32:
        near(found, attention_by_tokens(query, exact, sequences, width**-0.5, window))
        return
    rounded = [x.to(dtype).double() for x in exact]
    sizes = [torch.stack((keys, values.abs())) for keys, values in rounded]
    either = (attention_by_tokens(query, x, sequences, width**-0.5, window) for x in (exact, rounded, sizes))
    expected, other, mixed = either
    allowed = 2**-8 * (expected.abs() + 2 * mixed) + 1e-3 * mixed + 1e-5 + (other - expected).abs()
    assert ((found.double() - expected).abs() <= allowed).all()


@pytest.mark.parametrize("kind", ["float", "int8", "fp8"])
@both_dtypes
def test_a_sequence_has_the_same_bits_alone_and_in_company(dtype: torch.dtype, kind: str) -> None:
    """Whether its past is split or not, with any number of threads."""
    sequences = [(700, 1), (0, 130), (300, 5), (2000, 2), (90, 100)]
    query, cache, layout, _ = paged(sequences, (14, 2), 64, dtype)
    if kind != "float":
        cache = quantised_cache(sequences, layout, len(cache[0]), 2, 64, kind)[0]
    before = torch.get_num_threads()
    together = OPS.paged_attention(query, cache, layout, 0.125)
    torch.set_num_threads(3)
    assert torch.equal(OPS.paged_attention(query, cache, layout, 0.125), together)
    torch.set_num_threads(before)
    for row in range(len(sequences)):
        own = slice(*layout.query_starts[row : row + 2].tolist())
        count, table = own.stop - own.start, layout.block_table[row : row + 1]
        alone = PagedLayout(torch.tensor([0, count]), layout.seq_lens[row : row + 1], table, layout.kv_slots[own])
        assert torch.equal(OPS.paged_attention(query[own], cache, alone, 0.125), together[own])


def test_more_splits_than_there_is_room_for_at_once() -> None:
    sequences = [(2000, 3)] * 12
    query, cache, layout, dense = paged(sequences, (14, 2), 64, torch.float32)
    near(OPS.paged_attention(query, cache, layout, 0.125), attention_by_tokens(query, dense, sequences, 0.125))


def test_nothing_to_compute() -> None:
    cache, none = torch.zeros(2, 1, 4, 2, 8), torch.zeros(0, dtype=torch.int64)
    layout = PagedLayout(torch.tensor([0]), none, torch.zeros(0, 1, dtype=torch.int64), none)
    assert OPS.paged_attention(torch.zeros(0, 4, 8), cache, layout, 1.0).shape == (0, 4, 8)
    assert OPS.gelu(torch.zeros(0, 3)).shape == (0, 3)


@both_dtypes
@some
@given(
    tokens=st.integers(1, 70), heads=st.integers(1, 5), width=st.integers(1, 150), scale=st.sampled_from([1e-3, 1, 50])
)
def test_rows_of_any_width(dtype: torch.dtype, tokens: int, heads: int, width: int, scale: float) -> None:
    """Parts of wider rows, as queries are parts of a product."""
    x = (scale * noise(tokens, heads + 1, width + 3, dtype=dtype))[:, 1:, 2:-1]
    weight, bias = noise(2, width, seed=1, dtype=dtype)
    x64, weight64, bias64 = x.double(), weight.double(), bias.double()
    near(OPS.rms_norm(x, weight, 1e-6), x64 / (x64.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight64)
    centred = x64 - x64.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    near(OPS.layer_norm(x, weight, bias, 1e-5), centred / deviation * weight64 + bias64)
    near(OPS.gelu(x.contiguous()), torch.nn.functional.gelu(x64))
    both = torch.cat((x, x / scale), dim=-1)
    near(OPS.silu_mul(both), torch.nn.functional.silu(both[..., :width].double()) * both[..., width:].double())


@both_dtypes
def test_attention_of_large_and_of_tiny_numbers(dtype: torch.dtype) -> None:
    """Scores of thousands, which leave one key for each query; and of next to nothing, which leave the mean."""
    tiles, tokens, width = 2, 70, 64
    query, key, value = (noise(tiles, tokens, 1, width, seed=seed, dtype=dtype) for seed in range(3))
    first, second = (query[:, :, 0].double() @ key[:, :, 0].double().mT).topk(2).values.unbind(-1)
    best = (query[:, :, 0].double() @ key[:, :, 0].double().mT).argmax(-1)
    clear = first - second > 0.1
    found = OPS.dense_attention(query, key, value, 1e3)
    alone = torch.stack([value[t, best[t], 0] for t in range(tiles)])
    assert clear.sum() > tokens
    torch.testing.assert_close(found[:, :, 0][clear], alone[clear], atol=0, rtol=1e-6 if dtype == torch.float32 else 0)
    mean = value.double().mean(1, keepdim=True).expand(value.shape)
    for small in (1e-30, 1e-39):
        near_mixed(OPS.dense_attention(query, key * small, value, 1.0), mean, value.double().abs().mean())


@both_dtypes
def test_rows_of_a_tile_are_their_own_in_any_company(dtype: torch.dtype) -> None:
    """Of a head's queries, whatever strip they stand in: a tile alone, beside another, and with more threads."""
    query, key, value = (noise(2, 300, 3, 64, seed=seed, dtype=dtype) for seed in range(3))
    together, before = OPS.dense_attention(query, key, value, 0.125), torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        assert torch.equal(OPS.dense_attention(query[1:], key[1:], value[1:], 0.125), together[1:])
        assert torch.equal(OPS.dense_attention(query[:, 37:], key, value, 0.125), together[:, 37:])
    torch.set_num_threads(before)


@both_dtypes
@pytest.mark.parametrize("name", ["gelu", "silu_mul", "rms_norm", "attention", "attention of many"])
def test_what_is_no_number_stays_none(name: str, dtype: torch.dtype) -> None:
    x = noise(4, 40, dtype=dtype)
    x[1, 5] = float("nan")
    many = x[:, None].expand(4, 33, 40).unsqueeze(2)
    found = {
        "gelu": lambda: OPS.gelu(x)[:, 5],
        "silu_mul": lambda: OPS.silu_mul(x)[:, 5],
        "rms_norm": lambda: OPS.rms_norm(x, torch.ones(40, dtype=dtype), 1e-6)[:, 0],
        "attention": lambda: OPS.dense_attention(*[x.view(4, 1, 1, 40)] * 3, 1.0)[:, 0, 0, 0],
        "attention of many": lambda: OPS.dense_attention(*[many] * 3, 1.0)[:, 20, 0, 0],
    }[name]()
    assert found.isnan().tolist() == [False, True, False, False]


def test_bfloat16_is_rounded_to_the_nearest_even() -> None:
    """Sums of bfloat16 numbers are exact in float32, and have one correct rounding."""
    x, y = noise(5000, seed=1).bfloat16(), noise(5000, seed=2).bfloat16()
    assert torch.equal(OPS.add_scaled(x, None, y), (x.float() + y.float()).bfloat16())


@pytest.mark.parametrize("kind", ["float16", "float64", "transposed"])
def test_what_kernels_cannot_read_is_left_to_torch(kind: str) -> None:
    x = noise(40, 40).T if kind == "transposed" else noise(40, 40).to(getattr(torch, kind))
    weight = noise(40).to(x.dtype)
    for name, *rest in (("rms_norm", weight, 1e-5), ("gelu",), ("silu_mul",), ("layer_norm", weight, weight, 1e-5)):
        assert torch.equal(getattr(OPS, name)(x, *rest), getattr(TorchOps(), name)(x, *rest))
    query = x.reshape(40, 1, 4, 10) if kind != "transposed" else noise(40, 1, 10, 4).transpose(2, 3)
    found = OPS.dense_attention(query, query, query, 0.3)
    torch.testing.assert_close(found, TorchOps().dense_attention(query, query, query, 0.3))


def test_scratch_is_what_attention_takes() -> None:
    """Of torch's allocator, beside the result."""
    assert isinstance(OPS, NativeCpuOps)
    for sequences in ([(3000, 1)], [(0, 300)], [(900, 6)] * 3):
        query, cache, layout, _ = paged(sequences, (14, 2), 64, torch.float32)
        with torch.profiler.profile(profile_memory=True, acc_events=True) as found:
            OPS.paged_attention(query, cache, layout, 0.125)
        taken = sum(max(0, event.self_cpu_memory_usage) for event in found.events()) - 4 * query.numel()
        before, count = sequences[0]
        size = AttentionSize(count, before + count, 14, 2, 64, 4)
        assert 0 < taken <= OPS.paged_scratch(size)
        assert OPS.paged_scratch(size) < Ops().paged_scratch(AttentionSize(3000, 3000, 14, 2, 64, 4))


def test_threads_are_as_many_as_torch_is_told() -> None:
    """Counted in a process that computes nothing else: for a kernel there are two more than the one that calls."""
    code = (
        "import os, torch\nfrom tilewise.platforms.cpu import CpuPlatform\ntorch.set_num_threads(1)\n"
        "def count(): return len(os.listdir('/proc/self/task'))\n"
        "ops, x = CpuPlatform().ops(), torch.zeros(1, 512, 4, 64)\nbefore = count()\n"
        "torch.set_num_threads(3)\nops.dense_attention(x, x, x, 1.0)\nprint(count() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2\n"
