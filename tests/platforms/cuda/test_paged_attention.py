"""Paged attention against the reference in float64, over ragged batches, caches, windows and sinks."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from tilewise.platforms.base import PagedLayout
from tilewise.platforms.cuda.card import A100, H100, Card
from tilewise.platforms.cuda.kernels.paged_attention import paged_attention
from tilewise.platforms.kv_cache import LayerCache, QuantisedCache, quantise
from tilewise.platforms.reference import ReferenceOps

REFERENCE = ReferenceOps()
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Of numbers around 1: weights are rounded to the dtype, and so is the result."""
FP8 = torch.float8_e4m3fn

DECODE = [(1, 40), (1, 1), (1, 129)]
"""Sequences of (queries, tokens)."""
CHUNK = [(20, 100)]
PROMPTS = [(35, 35), (1, 1), (50, 50)]
MIXED = [(1, 70), (0, 1), (3, 131), (33, 60)]
DRAFTS = [(4, 90), (4, 4), (2, 33)]


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


def spoil(cache: LayerCache, table: list[list[int]], lengths: list[int]) -> None:
    """NaN wherever no token of a sequence stands; in caches of int8, in the scales."""
    page = cache.shape[2]
    used = torch.zeros(cache.shape[1:3], dtype=torch.bool)
    for pages, length in zip(table, lengths, strict=True):
        for token in range(length):
            used[pages[token // page], token % page] = True
    for numbers in (cache,) if isinstance(cache, Tensor) else (cache.scales, cache.numbers):
        free = ~used.to(numbers.device)
        if numbers.dtype.itemsize == 1:
            numbers.view(torch.uint8)[:, free] = 0x7F  # float8's NaN
        else:
            numbers[:, free] = float("nan")


def compared(case: Case, device: torch.device, spoiled: bool = True) -> tuple[Tensor, Tensor]:
    """What the kernel and what the reference gives."""
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
    if spoiled:
        spoil(cache, table, lengths)
    wide = torch.full((len(table), max(counts) + 1), 2**30, dtype=torch.int32)
    for row, pages in enumerate(table):
        wide[row, : len(pages)] = torch.tensor(pages, dtype=torch.int32)
    query = torch.randn(starts[-1] + case.padding, case.heads, case.width).to(device, case.dtype)
    sinks = torch.randn(case.heads).to(device, case.dtype) if case.sinks else None
    scale = case.width**-0.5
    mine = paged_attention(
        query, cache, torch.tensor(starts, dtype=torch.int32, device=device),
        torch.tensor(lengths, dtype=torch.int32, device=device), wide.to(device),
        max(queries), max(lengths), scale, case.window, sinks, case.card, case.splits,
    )  # fmt: skip
    layout = PagedLayout(
        torch.tensor(starts), torch.tensor(lengths), wide.clamp(max=0 + len(oracle[0]) - 1).long(), torch.empty(0)
    )
    real = query[: starts[-1]].double()
    return mine, REFERENCE.paged_attention(real, oracle, layout, scale, case.window, sinks)


def name(case: Case) -> str:
    plain = Case()
    return ", ".join(f"{part}={value}" for part, value in vars(case).items() if value != getattr(plain, part))


BF16, F16 = torch.bfloat16, torch.float16
CASES = [
    *(Case(sequences) for sequences in (DECODE, CHUNK)),
    *(Case(sequences, dtype=BF16) for sequences in (CHUNK, PROMPTS, MIXED, DRAFTS)),
    *(Case(dtype=F16, card=card) for card in (A100, H100)),
    *(Case([(30, 40), (2, 9)], heads, kv_heads, dtype=F16) for heads, kv_heads in ((3, 3), (4, 2), (14, 2), (8, 1))),
    *(Case(DRAFTS, heads, kv_heads, dtype=BF16) for heads, kv_heads in ((2, 2), (7, 1))),
    *(Case([(4, 30), (2, 50)], heads, kv_heads, dtype=BF16) for heads, kv_heads in ((16, 2), (32, 1))),
    *(Case([(40, 100), (1, 9)], 4, 1, width=width, dtype=F16) for width in (80, 96, 128)),
    *(Case(DECODE, width=width, page=page) for width, page in ((80, 8), (96, 32), (128, 64), (64, 128))),
    *(Case(dtype=F16, window=window, sinks=True) for window in (5, 40)),
    *(Case([(9, 80)], 2, 2, window=window, sinks=True) for window in (1, 16, 17, 1000)),
    *(Case(DRAFTS, 4, 1, window=window, sinks=window < 20) for window in (3, 16, 70, 100)),
    *(
        Case(sequences, 4, 1, dtype=dtype, stored=stored, card=card, window=window)
        for stored, card in ((torch.int8, H100), (FP8, H100), (FP8, A100))
        for sequences, dtype, window in (
            (DECODE, BF16, None),
            (DRAFTS, F16, 50),
            ([(1, 20), (40, 100)], BF16, None),
            ([(4, 100)], torch.float32, 30),
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
