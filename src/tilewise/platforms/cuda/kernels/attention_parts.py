"""Parts that attention kernels share: an online softmax, and sizes by card, head width and types of numbers.

The softmax is that of Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018), as FlashAttention
uses it: keys come a block at a time, and a row keeps the largest score so far (peak), the sum of its weights relative
to that (total), and its values weighted so (mixed). Where a larger score comes, total and mixed are brought down to it;
at the end, mixed / total is the result. Scores are in units of log2, since the hardware has a power of two and no power
of e; a hidden score is -inf.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from tilewise.platforms.cuda.card import Card

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
    ampere = card.capability < (9, 0)
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
