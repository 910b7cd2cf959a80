"""Causal attention over a paged cache: decode splits the past among programs, prefill the queries.

One kernel does both. A program has a tile of rows of one sequence and one key/value head. A row is one query of one of
the A/K query heads that share the head, so that a tile is filled by heads where a sequence has few queries, and what is
read of the cache serves all heads of the group at once. It walks the tokens that any of its rows sees, a block at a
time, with an online softmax (Dao, "FlashAttention-2", 2023); only the sums stay, in registers, and the pipeline of
asynchronous copies keeps the next blocks on their way into shared memory.

Prefill: a program for each (tile of rows, sequence, head). Every key that is loaded is multiplied with all rows of a
tile, 128 of them on tensor cores: the bound is arithmetic.

Decode: a tile has few rows, 1 to 8 a query, and each byte of the cache is read once for a handful of products: the
bound is the reading. One sequence has K programs only, fewer than a card has processors, so its past is cut into splits
(Dao et al., "Flash-Decoding", 2023), each of which leaves its peak, total and sum in float32 for a second kernel to
put together, in the order of the splits.

Where a call has both, sequences of few queries go the way of decode and the others that of prefill; each of the two
launches leaves the other's sequences alone.

No grid depends on numbers of the device. How many splits there are comes from how many sequences and heads there are,
and which tokens a split takes from the sequence's own length, which the kernel reads, so that a graph captured for a
long context spreads a short one over all of them.

Codes of a quantised cache are multiplied as they are, exact in any of the models' types; scales multiply the scores of
keys and the weights of values, a number for a token instead of one for each of its D. Against the reference, which
rounds scores, normalised weights and dequantised numbers to the model's dtype, only unnormalised weights (times their
values' scales) are rounded here; all sums are in float32.

Shape letters: N tokens, S sequences, A query heads, K key/value heads, D head width, B pages, P tokens a page.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from tilewise.platforms.cuda import Card
from tilewise.platforms.cuda.kernels.attention import (
    LOG2_E,
    LOWEST,
    MOST_SPLITS,
    READ_BOUND,
    AttentionTile,
    splits_of,
    tile_of,
    weighed,
)
from tilewise.platforms.cuda.kernels.rounding import e4m3_halves
from tilewise.platforms.kv_cache import LayerCache, QuantisedCache

_MERGED = 16
"""Splits that are put together at a time."""
_ANY = 2**31 - 1
"""Number of queries that no sequence reaches."""


@triton.jit
def _numbers(codes, LIKE: tl.constexpr):
    """Return numbers of the cache in the model's type, exactly; uint8, the bits of float8_e4m3fn, gives 256ths."""
    numbers = e4m3_halves(codes) if codes.dtype == tl.uint8 else codes
    if numbers.dtype != LIKE:
        numbers = numbers.to(tl.float32).to(LIKE)
    return numbers


@triton.jit
def _step(
    query, position, peak, total, mixed, start, begin, end,
    keys, values, key_scales, value_scales, pages, page_stride, token_stride, scale_page_stride, scale_token_stride,
    scale, window, MASKED: tl.constexpr, P: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add a block of tokens, from `start` on, to peak, total and mixed of the rows (see `attention`).

    If MASKED, some are not there (before `begin`, from `end` on) or not seen by all rows.
    """
    token = start + tl.arange(0, BLOCK_N)
    lane = tl.arange(0, WIDTH)
    # What is not there may hold anything, and even a weight of 0 makes NaN of a NaN: it is not read.
    there = None
    inside = (lane < D)[None, :] if WIDTH != D else None
    if MASKED:
        there = (token >= begin) & (token < end)
        inside = there[:, None] & (lane < D)[None, :]
    page = tl.load(pages + token // P, mask=there).to(tl.int64)
    place = (page * page_stride + (token % P) * token_stride)[:, None] + lane[None, :]
    key = tl.load(keys + place, mask=inside, other=None if inside is None else 0.0)
    value = tl.load(values + place, mask=inside, other=None if inside is None else 0.0)

    scores = tl.dot(query, tl.trans(_numbers(key, query.dtype)), input_precision=PRECISION)
    if key_scales is not None:
        UNIT: tl.constexpr = 256 if keys.dtype.element_ty == tl.uint8 else 1
        place = page * scale_page_stride + (token % P) * scale_token_stride
        key_scale = tl.load(key_scales + place, mask=there, other=None if there is None else 0) * UNIT
        value_scale = tl.load(value_scales + place, mask=there, other=None if there is None else 0) * UNIT
        scores *= (key_scale * scale)[None, :]
    else:
        scores *= scale
    if MASKED:
        seen = token[None, :] <= position[:, None]
        if window is not None:
            seen &= token[None, :] > position[:, None] - window
        scores = tl.where(seen, scores, float("-inf"))
    weights, peak, total, mixed = weighed(scores, peak, total, mixed)
    if value_scales is None:
        value = _numbers(value, query.dtype)
    elif query.dtype == tl.float16:
        # The product of a small weight and a small scale would be lost among its subnormal numbers.
        value = (_numbers(value, tl.float32) * value_scale[:, None]).to(query.dtype)
    else:
        value = _numbers(value, query.dtype)
        weights *= value_scale[None, :]
    return peak, total, tl.dot(weights.to(query.dtype), value, mixed, input_precision=PRECISION)


@triton.jit
def _visible(first, last, window, splits, BLOCK_N: tl.constexpr):
    """Return the tokens [begin, end) that queries at positions first to last see, and how many of them a split takes.

    Splits begin at multiples of BLOCK_N and have the same number of blocks, the last ones fewer or none.
    """
    begin = first * 0
    if window is not None:
        begin = tl.maximum(first - window + 1, 0)
    end = last + 1
    return begin, end, tl.cdiv(tl.cdiv(end, BLOCK_N) - begin // BLOCK_N, splits) * BLOCK_N


@triton.jit
def _clear(out, row, stop, HEADS: tl.constexpr, heads, first_head, D: tl.constexpr, WIDTH: tl.constexpr):
    """Write zeros to HEADS heads, from `first_head` on, of the rows [row, stop) of out [N, heads, D]."""
    lane = tl.arange(0, WIDTH)
    out += (row.to(tl.int64) * heads + first_head) * D
    for _ in range(row, stop):
        for head in range(HEADS):
            tl.store(out + head * D + lane, tl.zeros((WIDTH,), out.dtype.element_ty), mask=lane < D)
        out += heads * D


# Triton compiles a kernel again for numbers that are 1 or multiples of 16: not for those that change from step to step.
@triton.jit(do_not_specialize=["tokens", "least", "most", "splits", "window", "table_stride"])
def _attend(
    out, sums, peaks, query, keys, values, key_scales, value_scales, sinks, query_starts, seq_lens, block_table,
    tokens, least, most, splits, scale, window, query_stride, query_head_stride, page_stride, token_stride, head_stride,
    scale_page_stride, scale_token_stride, scale_head_stride, table_stride,
    G: tl.constexpr, P: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend from the sequences of `least` to `most` queries, a tile of rows and one key/value head in each program.

    Rows are (query, head) pairs, the G heads of a query one after the other. With splits, a sequence has one tile, and
    each program a part of its past; what they leave goes into sums [S, K, splits, most * G, D] and peaks (and totals)
    [S, K, splits, most * G, 2], which are None without splits. Tiles of up to MASKED rows mask all blocks.
    """
    tile, sequence, kv_head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_heads = tl.num_programs(2)
    start = tl.load(query_starts + sequence)
    stop = tl.load(query_starts + sequence + 1)
    queries = stop - start
    # Rows behind the last sequence are padding of a graph: the last sequence's first programs clear them.
    if (tile == 0) & (sequence == tl.num_programs(1) - 1):
        _clear(out, stop, tokens, G, kv_heads * G, kv_head * G, D, WIDTH)
    if (queries < least) | (queries > most):
        return
    split = 0
    if sums is not None:
        split = tile
        tile = 0
    else:
        # The last tile sees most and is begun first, so that the launch ends with short ones.
        tile = tl.cdiv(queries * G, BLOCK_M) - 1 - tile
        if tile < 0:
            return
    past = tl.load(seq_lens + sequence) - queries
    line = tl.arange(0, BLOCK_M)
    lane = tl.arange(0, WIDTH)
    number = (tile * BLOCK_M + line) // G
    head = kv_head * G + (tile * BLOCK_M + line) % G
    position = past + number
    first = past + tile * BLOCK_M // G
    last = past + tl.minimum((tile * BLOCK_M + BLOCK_M - 1) // G, queries - 1)
    begin, end, share = _visible(first, last, window, splits, BLOCK_N)
    lower = begin // BLOCK_N * BLOCK_N
    # A split has `share` tokens, whole blocks that follow those of the splits before; of a short past, the last splits
    # have none, and write nothing.
    if sums is not None:
        lower += split * share
        end = tl.minimum(end, lower + share)
        if lower >= end:
            return

    inside = (number < queries)[:, None] & (lane < D)[None, :]
    place = (start + number).to(tl.int64) * query_stride + head * query_head_stride
    rows = tl.load(query + place[:, None] + lane[None, :], mask=inside, other=0)
    peak = tl.full((BLOCK_M,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    if sinks is not None:
        # A sink is a logit without a value, as if it had come first. Of splits, the first has it.
        peak = tl.where(split == 0, tl.load(sinks + head).to(tl.float32) * LOG2_E, peak)
        total = tl.where(split == 0, 1.0, total)
    mixed = tl.zeros((BLOCK_M, WIDTH), tl.float32)
    pages = block_table + sequence.to(tl.int64) * table_stride
    keys += kv_head.to(tl.int64) * head_stride
    values += kv_head.to(tl.int64) * head_stride
    if key_scales is not None:
        key_scales += kv_head.to(tl.int64) * scale_head_stride
        value_scales += kv_head.to(tl.int64) * scale_head_stride
    full = lower
    if window is None and BLOCK_M > MASKED:
        # Whole blocks before all queries are seen by every row: those need no masks. Where reading is the bound, masks
        # cost nothing, but a second loop does, whose pipeline has to fill again.
        full = tl.maximum(tl.minimum(first + 1, end) // BLOCK_N * BLOCK_N, lower)
        for block in range(lower, full, BLOCK_N):
            peak, total, mixed = _step(
                rows, position, peak, total, mixed, block, begin, end, keys, values, key_scales, value_scales, pages,
                page_stride, token_stride, scale_page_stride, scale_token_stride, scale, window,
                False, P, D, WIDTH, BLOCK_N, PRECISION,
            )  # fmt: skip
    for block in range(full, end, BLOCK_N):
        peak, total, mixed = _step(
            rows, position, peak, total, mixed, block, begin, end, keys, values, key_scales, value_scales, pages,
            page_stride, token_stride, scale_page_stride, scale_token_stride, scale, window,
            True, P, D, WIDTH, BLOCK_N, PRECISION,
        )  # fmt: skip
    if sums is not None:
        spot = ((sequence.to(tl.int64) * kv_heads + kv_head) * splits + split) * (most * G) + line
        tl.store(sums + spot[:, None] * D + lane[None, :], mixed, mask=inside)
        tl.store(peaks + spot * 2, peak, mask=number < queries)
        tl.store(peaks + spot * 2 + 1, total, mask=number < queries)
    else:
        place = ((start + number).to(tl.int64) * kv_heads * G + head) * D
        mixed = (mixed / total[:, None]).to(out.dtype.element_ty)
        tl.store(out + place[:, None] + lane[None, :], mixed, mask=inside)


@triton.jit(do_not_specialize=["most", "splits", "window"])
def _merge(
    out, sums, peaks, query_starts, seq_lens, most, splits, window, G: tl.constexpr, D: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr, MERGED: tl.constexpr,
):  # fmt: skip
    """Merge the splits of one query and head: their sums, each brought to the highest peak, over their totals."""
    number, sequence, head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    heads = tl.num_programs(2)
    start = tl.load(query_starts + sequence)
    queries = tl.load(query_starts + sequence + 1) - start
    if (number >= queries) | (queries > most):
        return
    length = tl.load(seq_lens + sequence)
    begin, end, share = _visible(length - queries, length - 1, window, splits, BLOCK_N)
    # Splits without tokens have written nothing: only those that have some are read.
    used = tl.cdiv(end - begin // BLOCK_N * BLOCK_N, share)

    rows = most * G
    group = (sequence.to(tl.int64) * heads + head) // G
    spot = group * splits * rows + number * G + head % G
    split = tl.arange(0, SPLITS)
    peak = tl.load(peaks + (spot + split * rows) * 2, mask=split < used, other=LOWEST)
    total = tl.load(peaks + (spot + split * rows) * 2 + 1, mask=split < used, other=0)
    highest = tl.max(peak, 0)
    whole = tl.sum(total * tl.exp2(peak - highest), 0)
    lane = tl.arange(0, WIDTH)
    mixed = tl.zeros((WIDTH,), tl.float32)
    for some in range(0, used, MERGED):
        at = some + tl.arange(0, MERGED)
        lower = tl.load(peaks + (spot + at * rows) * 2, mask=at < used, other=LOWEST) - highest
        inside = (at < used)[:, None] & (lane < D)[None, :]
        part = tl.load(sums + (spot + at * rows)[:, None] * D + lane[None, :], mask=inside, other=0)
        mixed += tl.sum(part * tl.exp2(lower)[:, None], 0)
    place = ((start + number).to(tl.int64) * heads + head) * D
    tl.store(out + place + lane, (mixed / whole).to(out.dtype.element_ty), mask=lane < D)


@dataclass(frozen=True, slots=True)
class _Launch:
    """The arguments that all launches of one call have in common."""

    out: Tensor
    query: Tensor
    numbers: Tensor
    scales: Tensor | None
    query_starts: Tensor
    seq_lens: Tensor
    block_table: Tensor
    scale: float
    window: int | None
    sinks: Tensor | None
    card: Card

    def prefill(self, least: int, longest_query: int) -> None:
        """Attend from the sequences of `least` queries or more, in tiles of rows."""
        rows = longest_query * self._group
        tile = self.tile(rows)
        self._attend(triton.cdiv(rows, tile.rows), tile, least, _ANY, 1, None, None)

    def decode(self, most: int, longest: int, splits: int | None) -> None:
        """Attend from the sequences of at most `most` queries, in one tile each, their pasts split if that pays."""
        sequences, kv_heads = len(self.seq_lens), self.numbers.shape[3]
        tile = self.tile(most * self._group)
        if splits is None:
            longest = longest if self.window is None else min(longest, self.window + most)
            splits = splits_of(sequences * kv_heads, triton.cdiv(longest, tile.tokens), self.card)
        if splits == 1:
            self._attend(1, tile, 1, most, 1, None, None)
            return
        heads, width = self.query.shape[1:]
        rows = most * self._group
        sums = self.out.new_empty((sequences, kv_heads, splits, rows, width), dtype=torch.float32)
        peaks = self.out.new_empty((sequences, kv_heads, splits, rows, 2), dtype=torch.float32)
        self._attend(splits, tile, 1, most, splits, sums, peaks)
        _merge[most, sequences, heads](
            self.out, sums, peaks, self.query_starts, self.seq_lens, most, splits, self.window,
            G=self._group, D=width, WIDTH=triton.next_power_of_2(width), BLOCK_N=tile.tokens,
            SPLITS=max(MOST_SPLITS, triton.next_power_of_2(splits)), MERGED=_MERGED, num_warps=2,
        )  # fmt: skip

    @property
    def _group(self) -> int:
        return self.query.shape[1] // self.numbers.shape[3]

    def tile(self, rows: int) -> AttentionTile:
        return tile_of(rows, self.query.shape[2], self.query.itemsize, self.numbers.itemsize, self.card)

    def _attend(
        self,
        tiles: int,
        tile: AttentionTile,
        least: int,
        most: int,
        splits: int,
        sums: Tensor | None,
        peaks: Tensor | None,
    ) -> None:
        numbers, scales = self.numbers, self.scales
        if numbers.dtype == torch.float8_e4m3fn and not self.card.has_fp8:
            numbers = numbers.view(torch.uint8)
        width = self.query.shape[2]
        _attend[tiles, len(self.seq_lens), numbers.shape[3]](
            self.out, sums, peaks, self.query, numbers[0], numbers[1],
            None if scales is None else scales[0], None if scales is None else scales[1],
            self.sinks, self.query_starts, self.seq_lens, self.block_table,
            len(self.query), least, most, splits, self.scale * LOG2_E.value, self.window,
            self.query.stride(0), self.query.stride(1), *numbers.stride()[1:4],
            *((0, 0, 0) if scales is None else scales.stride()[1:4]), self.block_table.stride(0),
            G=self._group, P=numbers.shape[2], D=width, WIDTH=triton.next_power_of_2(width),
            BLOCK_M=tile.rows, BLOCK_N=tile.tokens, MASKED=READ_BOUND, PRECISION="tf32x3",
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip


def paged_attention(
    query: Tensor,
    cache: LayerCache,
    query_starts: Tensor,
    seq_lens: Tensor,
    block_table: Tensor,
    longest_query: int,
    longest: int,
    scale: float,
    window: int | None,
    sinks: Tensor | None,
    card: Card,
    splits: int | None = None,
) -> Tensor:
    """Compute `Ops.paged_attention` of query [N, A, D] (heads' numbers in order) over a layer's cache -> [N, A, D].

    On the device: int32 or int64 query_starts [S + 1], seq_lens [S] and block_table [S, pages]; P is a power of two, at
    least 8. On the host: upper bounds of a sequence's queries and of its tokens. Rows from query_starts[S] on, padding
    of a graph, become zeros; sequences without queries are left out, whatever their length says.

    A row's numbers depend on no other sequence's numbers. They do depend on how many splits its past is cut into, thus
    on S and `longest` (see `splits_of`), unless `splits` says how many; and on the size of its tile, thus on
    `longest_query` as far as it reaches the next power of two, and on whether it goes the way of decode.
    """
    numbers, scales = (cache.numbers, cache.scales) if isinstance(cache, QuantisedCache) else (cache, None)
    sequences, kv_heads = len(seq_lens), numbers.shape[3]
    out = query.new_empty(query.shape)
    if not len(query):
        return out
    if not sequences:
        return out.zero_()
    launch = _Launch(out, query, numbers, scales, query_starts, seq_lens, block_table, scale, window, sinks, card)
    group = query.shape[1] // kv_heads
    if longest_query * group <= launch.tile(longest_query * group).rows:
        launch.decode(longest_query, longest, splits)
        return out
    # Sequences whose rows (query, head) fill no more than a small tile are decoded beside the prefill of the others.
    few = launch.tile(READ_BOUND).rows // group if sequences > 1 else 0
    launch.prefill(few + 1, longest_query)
    if few:
        launch.decode(few, longest, splits)
    return out
