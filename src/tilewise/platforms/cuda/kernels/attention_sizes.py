"""Sizes of paged attention: how many rows, tokens and splits, by card, head width and types of numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from tilewise.platforms.cuda.card import Card

READ_BOUND = 32
"""Rows of a tile up to which the reading of the cache is the bound: one token and three drafts of 8 heads. Beside a
prefill, sequences that have no more go the way of decode."""
_PROGRAMS_A_PROCESSOR = 4
"""Splits aim at this many: two or three run on a processor at a time, and sequences differ in length."""
MOST_SPLITS = 128


@dataclass(frozen=True, slots=True)
class Tile:
    """How a launch of paged attention is cut: rows (query, head) and tokens of a block."""

    rows: int
    tokens: int
    warps: int
    stages: int


def tile_of(rows: int, width: int, itemsize: int, stored: int, card: Card) -> Tile:
    """For launches of this many rows a sequence and head at most; bytes of a number of the model and of the cache.

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
        return Tile(16, 32, 4, 3)
    ampere = card.capability < (9, 0)
    most = 64 if ampere and stored == 1 else 128
    block_m = min(max(int(triton.next_power_of_2(rows)), 16), most)
    if block_m <= READ_BOUND:
        return Tile(block_m, 64, 4, 5)
    if stored == 1 or (ampere and width > 64):
        return Tile(block_m, 32, 8, 4)
    return Tile(block_m, 64, 8, 3)


def splits_of(programs: int, blocks: int, card: Card) -> int:
    """How many parts to cut the past of every sequence into, of `programs` (sequence, head) and `blocks` of tokens.

    A power of two, so that a row's numbers stay the same over a range of batches.
    """
    wanted = triton.next_power_of_2(triton.cdiv(_PROGRAMS_A_PROCESSOR * card.processors, programs))
    return int(min(wanted, triton.next_power_of_2(blocks), MOST_SPLITS))


def scratch_bytes(rows: int, width: int, card: Card) -> int:
    """Bytes that splits leave at most, whatever the batch, of `rows` (query, head) a sequence and key/value head.

    `splits_of` gives each of n programs fewer than 2 (4 processors / n + 1) of them, and more than one only if n is
    less than 4 processors.
    """
    return 4 * _PROGRAMS_A_PROCESSOR * card.processors * rows * (width + 2) * torch.float32.itemsize
