"""Paged attention against the reference in float64, over ragged batches, caches, windows and sinks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from tilewise.platforms.cuda import A100, H100, Card
from tilewise.platforms.cuda.kernels.attention import scratch_bytes, splits_of
from tilewise.platforms.cuda.kernels.paged_attention import paged_attention
from tilewise.platforms.kv_cache import LayerCache, PagedLayout, QuantisedCache, quantise
from tilewise.platforms.ops import Ops

REFERENCE = Ops()
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}
"""Of numbers around 1: weights are rounded to the dtype, and so is the result."""
FP8 = torch.float8_e4m3fn

DECODE = [(1, 40), (1, 1), (1, 129)]
"""Sequences of (queries, tokens)."""
CHUNK = [(9, 100)]
PROMPTS = [(35, 35), (1, 1), (9, 9)]
MIXED = [(1, 70), (0, 1), (3, 131), (33, 60)]
DRAFTS = [(4, 90), (4, 4), (1, 33)]


@dataclass(frozen=True)
class Case:
    sequences: list[tuple[int, int]] = field(default_factory=lambda: MIXED)
    heads: int = 8
    kv_heads: int = 2
    width: int = 64
    page: int = 16
    dtype: torch.dtype = torch.float32
    stored: torch.dtype | None = None
    window: int | None = None
    sinks: bool = False
    card: Card = H100
    splits: int | None = None
    padding: int = 0


def random_cache(case: Case, pages: int, device: torch.device) -> LayerCache:
    numbers = torch.randn(2, pages, case.page, case.kv_heads, case.width)
    if case.stored is None:
        return numbers.to(device, case.dtype)
    codes, scales = quantise(numbers, case.stored)
    return QuantisedCache(codes.to(device), scales.to(device))


def in_float64(cache: LayerCache) -> Tensor:
    if isinstance(cache, Tensor):
        return cache.double()
    return cache.numbers.float().double() * cache.scales.unsqueeze(-1)


def spoil(cache: LayerCache, table: list[list[int]], seen: list[range]) -> None:
    """NaN wherever no query sees a token; in caches of int8, in the scales."""
    page = cache.shape[2]
    used = torch.zeros(cache.shape[1:3], dtype=torch.bool)
    for pages, tokens in zip(table, seen, strict=True):
        for token in tokens:
            used[pages[token // page], token % page] = True
    for numbers in (cache,) if isinstance(cache, Tensor) else (cache.scales, cache.numbers):
        free = ~used.to(numbers.device)
        if numbers.dtype.itemsize == 1:
            numbers.view(torch.uint8)[:, free] = 0x7F  # float8's NaN
        else:
            numbers[:, free] = float("nan")


def ints(numbers: list[Any], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device=device)


def compared(case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
    """What the kernel and what the reference gives; NaN in the cache and numbers of no page wherever nobody looks."""
    torch.manual_seed(len(case.sequences) * case.width + case.page)
    queries, lengths = ([pair[part] for pair in case.sequences] for part in (0, 1))
    starts = [0]
    for some in queries:
        starts.append(starts[-1] + some)
    counts = [-(-length // case.page) for length in lengths]
    ids = (torch.randperm(sum(counts) + 2) + 1).tolist()
    table = [[ids.pop() for _ in range(count)] for count in counts]
    cache = random_cache(case, sum(counts) + 3, device)
    oracle = in_float64(cache)
    far = case.window or max(lengths)
    spoil(cache, table, [range(max(n - some + 1 - far, 0), n) for some, n in case.sequences])
    wide = torch.full((len(table), max(counts) + 1), 2**30, dtype=torch.int32)
    for row, pages in enumerate(table):
        wide[row, : len(pages)] = torch.tensor(pages, dtype=torch.int32)
    query = torch.randn(starts[-1] + case.padding, case.heads, case.width).to(device, case.dtype)
    sinks = torch.randn(case.heads).to(device, case.dtype) if case.sinks else None
    scale = case.width**-0.5
    batch = (ints(starts, device), ints(lengths, device), wide.to(device), max(queries), max(lengths))
    mine = paged_attention(query, cache, *batch, scale, case.window, sinks, case.card, case.splits)
    layout = PagedLayout(
        torch.tensor(starts), torch.tensor(lengths), wide.clamp(max=oracle.shape[1] - 1).long(), torch.empty(0)
    )
    real = query[: starts[-1]].double()
    return mine, REFERENCE.paged_attention(real, oracle, layout, scale, case.window, sinks)


def name(case: Case) -> str:
    plain = Case()
    return ", ".join(f"{part}={value}" for part, value in vars(case).items() if value != getattr(plain, part))


BF16, F16 = torch.bfloat16, torch.float16
CASES = [
    Case(DECODE),
    Case(CHUNK, 4),
    *(Case(sequences, dtype=BF16) for sequences in (CHUNK, PROMPTS, MIXED, DRAFTS)),
    Case([(33, 60), (1, 70)], dtype=F16, card=A100),
    *(
        Case([(30, 40), (2, 9)], heads, kv_heads, width, dtype=F16)
        for heads, kv_heads, width in ((3, 3, 80), (4, 2, 64), (14, 2, 96), (8, 1, 128))
    ),
    *(Case(DRAFTS, heads, kv_heads, dtype=BF16) for heads, kv_heads in ((2, 2), (7, 1))),
    *(Case([(4, 30), (2, 50)], heads, kv_heads, dtype=BF16) for heads, kv_heads in ((16, 2), (32, 1))),
    *(Case(DECODE, width=width, page=page) for width, page in ((80, 8), (96, 32), (128, 64), (64, 128))),
    *(Case(dtype=F16, window=window, sinks=True) for window in (5, 40)),
    *(Case([(9, 80)], 2, 2, window=window, sinks=True) for window in (1, 16, 17, 1000)),
    *(Case(DRAFTS, 4, 1, window=window, sinks=window < 20) for window in (3, 70)),
    *(
        Case(sequences, 4, 1, dtype=dtype, stored=stored, card=card, window=window)
        for stored, cards in ((torch.int8, [H100] * 4), (FP8, [H100, A100] * 2))
        for card, (sequences, dtype, window) in zip(
            cards,
            (
                (DECODE, BF16, None),
                (DRAFTS, F16, 50),
                ([(1, 20), (40, 100)], BF16, None),
                ([(4, 100)], torch.float32, 30),
            ),
            strict=True,
        )
    ),
    Case(DECODE, splits=1, sinks=True),
    Case(DECODE, splits=3, sinks=True),
    Case(dtype=F16, padding=5),
    Case(DECODE, padding=40, heads=3, kv_heads=1),
]


@pytest.mark.parametrize("case", CASES, ids=name)
def test_agrees_with_the_reference(case: Case, device: torch.device) -> None:
    mine, theirs = compared(case, device)
    rows = len(theirs)
    torch.testing.assert_close(mine[:rows].double(), theirs, rtol=TOLERANCE[case.dtype], atol=TOLERANCE[case.dtype])
    assert not mine[rows:].any()


def test_numbers_of_other_sequences_change_nothing(device: torch.device) -> None:
    torch.manual_seed(0)
    cache, query = torch.randn(2, 8, 16, 2, 64, device=device), torch.randn(5, 4, 64, device=device)
    batch = (ints([0, 2, 3, 5], device), ints([40, 20, 30], device))
    rest = (ints([[3, 0, 1], [2, 4, 0], [5, 6, 0]], device), 2, 40, 0.125, None, None, H100)
    before = paged_attention(query, cache, *batch, *rest)[2]
    for pages, rows in (([0, 1, 3], [0, 1]), ([5, 6], [3, 4])):
        cache[:, pages], query[rows] = 1e4, -1e4
    assert torch.equal(paged_attention(query, cache, *batch, *rest)[2], before)


def test_splits_of_an_explicit_number_make_a_sequence_independent_of_its_batch(device: torch.device) -> None:
    torch.manual_seed(0)
    cache, query = torch.randn(2, 8, 32, 1, 64, device=device), torch.randn(3, 2, 64, device=device)
    lengths, table = [100, 7, 60], [[1, 2, 3, 4], [5, 0, 0, 0], [6, 7, 0, 0]]
    rest = (0.125, None, None, H100, 4)
    together = paged_attention(
        query, cache, ints([0, 1, 2, 3], device), ints(lengths, device), ints(table, device), 1, 100, *rest
    )
    for row, length in enumerate(lengths):
        batch = (ints([0, 1], device), ints([length], device), ints([table[row]], device), 1, length)
        assert torch.equal(paged_attention(query[row : row + 1], cache, *batch, *rest)[0], together[row])


def test_a_graph_for_long_contexts_and_larger_batches(device: torch.device) -> None:
    """Its padding are sequences of one token in page 0, or of none, and rows behind all of them."""
    torch.manual_seed(0)
    cache, query = torch.randn(2, 6, 16, 1, 64, device=device), torch.randn(7, 2, 64, device=device)
    cache[:, 0] = float("nan")
    lengths, table = [70, 1, 1, 1], [[5, 1, 2, 4, 3], *([[0] * 5] * 3)]
    mine = paged_attention(
        query, cache, ints([0, 2, 3, 4, 4], device), ints(lengths, device), ints(table, device),
        2, 700, 0.125, None, None, H100,
    )  # fmt: skip
    key, value = cache[:, table[0]].flatten(1, 2)[:, :70]
    torch.testing.assert_close(mine[:2], REFERENCE._causal_attention(query[:2], key, value, 0.125), rtol=0, atol=2e-6)
    assert not mine[4:].any()


@pytest.mark.parametrize("stored", [None, torch.int8], ids=str)
def test_views_of_larger_tensors(stored: torch.dtype | None, device: torch.device) -> None:
    """Queries beside keys and values, and one layer's part of a cache in which pages come first."""
    torch.manual_seed(0)
    numbers = torch.randn(6, 3, 2, 16, 2, 64, device=device)
    codes, scales = quantise(numbers, stored or torch.int8)
    layer = numbers[:, 1].transpose(0, 1)
    cache = QuantisedCache(codes[:, 1].transpose(0, 1), scales[:, 1].transpose(0, 1)) if stored else layer
    query = torch.randn(2, 8, 64, device=device)[:, :4]
    batch = (ints([0, 2], device), ints([41], device), ints([[9, 4, 2, 5, 9]], device)[:, 1:], 2, 41)
    mine = paged_attention(query, cache, *batch, 0.125, None, None, H100)
    key, value = in_float64(cache)[:, [4, 2, 5]].flatten(1, 2)[:, :41]
    theirs = REFERENCE._causal_attention(query.double(), key, value, 0.125)
    torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("card", [A100, H100], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_code_of_float8(dtype: torch.dtype, card: Card, device: torch.device) -> None:
    """The only token of a sequence is its result, number by number; A100 has no such numbers and puts them together."""
    codes = torch.arange(256, dtype=torch.uint8, device=device)
    codes[codes & 0x7F == 0x7F] = 0  # NaN
    numbers = codes.view(1, 1, 1, 2, 128).expand(2, 1, 8, 2, 128).contiguous().view(FP8)
    cache = QuantisedCache(numbers, torch.ones(2, 1, 8, 2, device=device))
    batch = (ints([0, 1], device), ints([1], device), ints([[0]], device), 1, 1)
    mine = paged_attention(torch.zeros(1, 2, 128, dtype=dtype, device=device), cache, *batch, 1, None, None, card)
    assert torch.equal(mine.float(), numbers[1, :, 0].float())


@pytest.mark.parametrize("size", [1e-3, 30.0])
def test_sizes_of_quantised_values_in_float16(size: float, device: torch.device) -> None:
    """Neither the product of a small weight and a small scale, nor a large scale, leaves float16's range."""
    torch.manual_seed(0)
    codes, scales = quantise(torch.randn(2, 8, 16, 1, 64, device=device), torch.int8)
    cache = QuantisedCache(codes, scales)
    scales[1] *= size
    query = torch.randn(1, 2, 64, device=device, dtype=torch.float16)
    batch = (ints([0, 1], device), ints([128], device), ints([[*range(8)]], device), 1, 128)
    mine = paged_attention(query, cache, *batch, 0.125, None, None, H100).double() / size
    key, value = in_float64(cache).flatten(1, 2)
    theirs = REFERENCE._causal_attention(query.double(), key, value / size, 0.125)
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=5e-4)


def test_without_rows_or_sequences(device: torch.device) -> None:
    cache, query = torch.randn(2, 2, 16, 1, 64, device=device), torch.randn(3, 2, 64, device=device)
    none = torch.empty(0, 1, dtype=torch.int32, device=device)
    assert not paged_attention(query, cache, ints([0], device), none[:, 0], none, 0, 0, 1, None, None, H100).any()
    assert (
        paged_attention(query[:0], cache, ints([0], device), none[:, 0], none, 0, 0, 1, None, None, H100).numel() == 0
    )
    batch = (ints([0, 0], device), ints([1], device), ints([[0]], device))
    assert not paged_attention(query, cache, *batch, 1, 1, 1, None, None, H100).any()


@pytest.mark.parametrize("programs", [1, 2, 8, 100, 527, 528, 5000])
def test_scratch_of_splits_is_bounded(programs: int) -> None:
    splits = splits_of(programs, 10**6, H100)
    assert splits == 1 or programs * splits * 16 * (64 + 2) * 4 <= scratch_bytes(16, 64, H100)
