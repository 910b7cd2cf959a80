"""Attention of all to all within each tile of a picture, as the vision tower does it.

A program has a tile of query rows of one head and walks all keys, a block at a time, with an online softmax (Dao,
"FlashAttention-2", 2023): scores never leave registers, and the pipeline of asynchronous copies keeps the next blocks
of keys and values on their way. InternViT has 1025 tokens (577 or 257 of smaller tiles), one more than a multiple of
64: the keys behind the last whole block come in a block of their own that is as narrow as tensor cores allow, and are
the only ones that are masked.

Against the reference, which rounds scores and normalised weights to the model's dtype, only unnormalised weights are
rounded here; all sums are in float32. A row's numbers depend on its own tile alone.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from tilewise.platforms.cuda.kernels.attention_parts import LOG2_E, LOWEST, weighed

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


def tile_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
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
