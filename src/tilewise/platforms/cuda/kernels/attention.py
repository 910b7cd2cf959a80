"""Attention of all to all within each tile of a picture, as the vision tower does it; and what paged attention shares.

The softmax is that of Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018), as FlashAttention
uses it: keys come a block at a time, and a row keeps the largest score so far (peak), the sum of its weights relative
to that (total), and its values weighted so (mixed). Where a larger score comes, total and mixed are brought down to it;
at the end, mixed / total is the result. Scores are in units of log2, since the hardware has a power of two and no power
of e; a hidden score is -inf.

A program has a tile of query rows of one head and walks all keys, a block at a time, with an online softmax (Dao,
"FlashAttention-2", 2023): scores never leave registers, and the pipeline of asynchronous copies keeps the next blocks
of keys and values on their way. InternViT has 1025 tokens (577 or 257 of smaller tiles), one more than a multiple of
64: the keys behind the last whole block come in a block of their own that is as narrow as tensor cores allow, and are
the only ones that are masked.

Against the reference, which rounds scores and normalised weights to the model's dtype, only unnormalised weights are
rounded here; all sums are in float32. A row's numbers depend on its own tile alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from tilewise.platforms.cuda import Card

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1e38)
"""Peak of a row before its first score: finite, so that a row that has seen nothing yet subtracts no infinities."""


@triton.jit
def weighed(scores, peak, total, mixed):
    """Weigh a block of scores [M, N].

    Return weights relative to the new peaks [M], those peaks, total [M] brought down to them with the weights added,
    and mixed [M, D] brought down to them.
    """
    higher = tl.maximum(peak, tl.max(scores, 1))
    weights = tl.exp2(scores - higher[:, None])
    shrunk = tl.exp2(peak - higher)
    return weights, higher, total * shrunk + tl.sum(weights, 1), mixed * shrunk[:, None]


_NARROWEST = 16
"""Least number of rows, and of columns, of a product on tensor cores."""


@triton.jit
def _step(
    query, peak, total, mixed, keys, values, start, stop, key_stride, value_stride, scale,
    MASKED: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add a block of keys, from `start` on, to peak, total and mixed of the rows; if MASKED, up to `stop`."""
    token = start + tl.arange(0, BLOCK_N)
    lane = tl.arange(0, WIDTH)
    inside = (lane < D)[None, :] if WIDTH != D else None
    if MASKED:
        inside = (token < stop)[:, None] & (lane < D)[None, :]
    other: tl.constexpr = None if inside is None else 0.0
    key = tl.load(keys + token[:, None] * key_stride + lane[None, :], mask=inside, other=other)
    value = tl.load(values + token[:, None] * value_stride + lane[None, :], mask=inside, other=other)
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
    if MASKED:
        scores = tl.where((token < stop)[None, :], scores, float("-inf"))
    weights, peak, total, mixed = weighed(scores, peak, total, mixed)
    return peak, total, tl.dot(weights.to(query.dtype), value, mixed, input_precision=PRECISION)


@triton.jit
def _attend_tile(
    out, query, keys, values, rows, tokens, scale, query_tile, query_row, query_head, key_tile, key_row, key_head,
    value_tile, value_row, value_head, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, TAIL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend from BLOCK_M rows of one head and tile; keys come BLOCK_N at a time, the last ones in a block of TAIL."""
    head, tile = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    lane = tl.arange(0, WIDTH)
    inside = (row < rows)[:, None] & (lane < D)[None, :]
    query += tile * query_tile + head * query_head
    keys += tile * key_tile + head * key_head
    values += tile * value_tile + head * value_head
    some = tl.load(query + row[:, None] * query_row + lane[None, :], mask=inside, other=0.0)
    peak = tl.full((BLOCK_M,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    mixed = tl.zeros((BLOCK_M, WIDTH), tl.float32)
    whole = tokens // BLOCK_N * BLOCK_N
    for start in range(0, whole, BLOCK_N):
        peak, total, mixed = _step(
            some, peak, total, mixed, keys, values, start, tokens, key_row, value_row, scale,
            False, D, WIDTH, BLOCK_N, PRECISION,
        )  # fmt: skip
    if TAIL:
        peak, total, mixed = _step(
            some, peak, total, mixed, keys, values, whole, tokens, key_row, value_row, scale,
            True, D, WIDTH, TAIL, PRECISION,
        )  # fmt: skip
    out += (tile * rows * tl.num_programs(1) + head) * D
    place = row[:, None] * (tl.num_programs(1) * D) + lane[None, :]
    tl.store(out + place, (mixed / total[:, None]).to(out.dtype.element_ty), mask=inside)


def _sizes(rows: int, width: int, itemsize: int) -> tuple[int, int, int, int]:
    """Choose rows and keys of a block, warps and stages.

    A processor of an H100 makes about 3.8 TFLOP/s of products, and with 128 rows a block reads 30 GB/s for them out of
    the L2 cache, 4 TB/s on all 132; with 64 rows, twice that, more than there is. Two warp groups share the 128 rows:
    at width 64 a thread needs 100 registers on Hopper, and two programs fit on a processor, so that one takes its
    exponentials (a quarter of what there is to do at this width) while the other multiplies. At width 128 there is room
    for one. 1025 rows are 8 blocks and a row: a ninth of the programs is for padding, which 64 rows would halve.

    One query, as poolers have it, takes the narrowest tile. float32 is multiplied in three products of tf32, whose
    parts are in registers thrice.
    """
    if itemsize == 4:
        return _NARROWEST, 32, 4 if width <= 64 else 8, 3
    if rows <= 2 * _NARROWEST:
        return max(int(triton.next_power_of_2(rows)), _NARROWEST), 64, 4, 3
    return 64 if rows <= 64 else 128, 64, 8, 3


def dense_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Compute `Ops.dense_attention` of query [tiles, n, A, D] over key, value [tiles, m, A, D] -> the shape of query.

    Tensors may have any strides, as long as a head's numbers stand in order and one tile spans fewer than 2^31 numbers;
    the result is in order.
    """
    tiles, rows, heads, width = query.shape
    tokens = key.shape[1]
    out = query.new_empty(query.shape)
    if not query.numel():
        return out
    if not tokens:
        return out.zero_()
    block_m, block_n, warps, stages = _sizes(rows, width, query.itemsize)
    left = tokens % block_n
    _attend_tile[triton.cdiv(rows, block_m), heads, tiles](
        out, query, key, value, rows, tokens, scale * LOG2_E.value,
        *query.stride()[:3], *key.stride()[:3], *value.stride()[:3],
        D=width, WIDTH=triton.next_power_of_2(width), BLOCK_M=block_m, BLOCK_N=block_n,
        TAIL=max(triton.next_power_of_2(left), _NARROWEST) if left else 0, PRECISION="tf32x3",
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


READ_BOUND = 32
"""Rows of a tile up to which the reading of the cache is the bound: one token and three drafts of 8 heads. Beside a
prefill, sequences that have no more go the way of decode."""
_PROGRAMS_A_PROCESSOR = 4
"""Programs for each processor that splits aim at: two or three run at a time, and sequences differ in length."""
MOST_SPLITS = 128
"""Splits of a sequence's past at most."""


@dataclass(frozen=True, slots=True)
class AttentionTile:
    """The sizes of a program of paged attention: rows (query, head) of its tile, and tokens of a block of keys."""

    rows: int
    tokens: int
    warps: int
    stages: int


def tile_of(rows: int, width: int, itemsize: int, stored: int, card: Card) -> AttentionTile:
    """Choose the tile of a launch that has at most `rows` rows for a sequence and key/value head.

    `itemsize` and `stored` are bytes of a number of the model and of the cache.

    Up to 32 rows, the cache's bytes are the bound: a tile of 64 tokens has 16 bytes of every row for a copy of each
    thread, and 5 stages are two tiles on their way, since the read of their pages is a step of the pipeline too. Of
    width 128 in bfloat16 that is 72 KiB of shared memory, two programs on a processor of an A100, three of an H100.

    Beyond, products are the bound, and registers are what limits them: two warp groups hold 128 rows of sums (64
    registers a thread at width 128), 64 tokens of scores (32) and those as weights (16). Ampere keeps its queries in
    registers as well (32), and codes of 8 bits pass through registers on their way to the tensor cores; both would
    spill with 64 tokens. At width 64 all of this is half as much, and two programs fit on a processor.

    float32 is multiplied in three products of tf32 (as exact as float32's own), whose parts are in registers thrice.
    """
    if itemsize == 4:
        return AttentionTile(16, 32, 4, 3)
    ampere = not card.has_wide_tiles
    most = 64 if ampere and stored == 1 else 128
    block_m = min(max(int(triton.next_power_of_2(rows)), 16), most)
    if block_m <= READ_BOUND:
        return AttentionTile(block_m, 64, 4, 5)
    if stored == 1 or (ampere and width > 64):
        return AttentionTile(block_m, 32, 8, 4)
    return AttentionTile(block_m, 64, 8, 3)


def splits_of(programs: int, blocks: int, card: Card) -> int:
    """Return how many parts to cut the past of every sequence into, of `programs` (sequence, head) and `blocks` of
    tokens.

    It is a power of two, so that a row's numbers stay the same over a range of batches.
    """
    wanted = triton.next_power_of_2(triton.cdiv(_PROGRAMS_A_PROCESSOR * card.processors, programs))
    return int(min(wanted, triton.next_power_of_2(blocks), MOST_SPLITS))


def scratch_bytes(rows: int, width: int, card: Card) -> int:
    """Return the bytes that splits leave at most, whatever the batch, of `rows` (query, head) a sequence and key/value
    head.

    `splits_of` gives each of n programs fewer than 2 (4 processors / n + 1) of them, and more than one only if n is
    less than 4 processors: together fewer than 16 processors.
    """
    return 4 * _PROGRAMS_A_PROCESSOR * card.processors * rows * (width + 2) * torch.float32.itemsize
