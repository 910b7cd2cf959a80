"""The ModelBatch of a plan's work: the tables that it is made from, and the rows in which its tokens stand.

Everything but the tokens is known on the host, is laid out there in one array, and goes to the device in one copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tilewise.errors import EngineStuck
from tilewise.models.decoder import ModelBatch
from tilewise.platforms.kv_cache import PagedLayout
from tilewise.platforms.ops import INVARIANT_ROWS
from tilewise.platforms.transfers import to_device, to_device_together
from tilewise.step import Admission, BlockGrant, Limits, Work


class Tables:
    """Tokens and KV blocks of each slot. The runner alone writes a plan's admissions, grants and guesses, then tokens.

    Tokens are on the device: the step that chooses them writes them here, so that the next step can read them without
    the host. Block ids are decided by plans, and stay on the host.
    """

    def __init__(self, limits: Limits, device: torch.device) -> None:
        slots = limits.max_num_seqs + 1
        self.tokens = torch.zeros(slots, limits.max_model_len + 1, dtype=torch.int64, device=device)
        self.blocks = np.zeros((slots, limits.blocks_a_sequence), np.int64)
        self.device = device
        self._num_blocks = limits.num_blocks
        self.rows: list[Admission | None] = [None] * slots

    def admit(self, admission: Admission) -> None:
        self.rows[admission.slot] = admission
        self.write(admission.slot, 0, admission.token_ids)

    def grant(self, grant: BlockGrant) -> None:
        """Write block ids into a slot's table. Raises EngineStuck for one that no cache has: kernels believe it."""
        stop = grant.first + len(grant.block_ids)
        in_cache = 0 < min(grant.block_ids) <= max(grant.block_ids) < self._num_blocks
        if not in_cache or not 0 < grant.slot < len(self.rows):
            raise EngineStuck(
                f"{grant} does not lie in a cache of {self._num_blocks} blocks and {len(self.rows)} slots."
            )
        self.blocks[grant.slot, grant.first : stop] = grant.block_ids

    def write(self, slot: int, start: int, token_ids: Sequence[int]) -> None:
        """Write tokens of a slot from position `start` on."""
        self.tokens[slot, start : start + len(token_ids)] = to_device(token_ids, self.device)

    def admission(self, slot: int) -> Admission:
        admission = self.rows[slot]
        assert admission is not None, f"slot {slot} works without an admission"
        return admission


Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Placement:
    """The rows of a step's tokens in its batch. Rows in which no token stands are padding."""

    rows: Integers
    """int64 [T], the row of each token, in the order of the work."""
    total: int
    """Rows of the batch."""

    def spread(self, values: Integers) -> Integers:
        """Spread values of tokens [T] over rows [total]. Padding has 0: token 0, its key and value in block 0."""
        spread = np.zeros(self.total, np.int64)
        spread[self.rows] = values
        return spread


def place_in_order(work: Sequence[Work]) -> Placement:
    """Place one token after the other, without padding."""
    total = sum(item.count for item in work)
    return Placement(np.arange(total), total)


def place_in_panels(work: Sequence[Work]) -> Placement:
    """Place a token at position p in row p % INVARIANT_ROWS of a panel, whoever else is there.

    How a product rounds may depend on the row, and never on what the other rows hold. Sequences share panels where
    their places differ, so that eight that decode take two or three panels and not eight.
    """
    taken: list[int] = []  # rows of each panel, one bit each
    spans = []
    for item in work:
        for first, stop in _cuts(item):
            # The rows that are wanted, one bit each; they go to the first panel in which all of them are free.
            places = (1 << stop - first) - 1 << first % INVARIANT_ROWS
            panel = next((number for number, rows in enumerate(taken) if not rows & places), len(taken))
            if panel == len(taken):
                taken.append(0)
            taken[panel] |= places
            row = panel * INVARIANT_ROWS + first % INVARIANT_ROWS
            spans.append(np.arange(row, row + stop - first))
    return Placement(np.concatenate(spans), len(taken) * INVARIANT_ROWS)


def _cuts(item: Work) -> Iterator[tuple[int, int]]:
    """Yield the positions of a piece of work as [first, stop), cut where panels end."""
    first, end = item.start, item.start + item.count
    while first < end:
        stop = min(end, (first // INVARIANT_ROWS + 1) * INVARIANT_ROWS)
        yield first, stop
        first = stop


_PIECE = 128
"""Least tokens of a part of a step: with fewer, reading a stage's weights once more costs more than is gained."""


def pieces_of(work: Sequence[Work], most: int) -> list[list[Work]]:
    """Cut the work into up to `most` parts of about as many tokens, one behind the other.

    While a stage of a pipeline has one of them, the stage before has the next one (Huang et al. 2019, "GPipe"), so that
    of s stages and n parts a step takes (n + s - 1) / (n * s) of the time of all stages. No part samples: that is the
    whole step's.
    """
    total = sum(item.count for item in work)
    count = max(1, min(most, total // _PIECE))
    ends = iter([total * number // count for number in range(1, count + 1)])
    pieces, done, end = [list[Work]()], 0, next(ends)
    for item in work:
        while item.count > end - done:
            first, item = _cut(item, end - done)
            pieces[-1] += [first] if first.count else []
            pieces.append([])
            done, end = end, next(ends)
        pieces[-1].append(item._replace(samples=False))
        done += item.count
    return pieces


def _cut(item: Work, count: int) -> tuple[Work, Work]:
    """Cut a piece of work into its first `count` tokens and the others."""
    first = Work(item.slot, item.start, count, samples=False, tiles=item.tiles)
    return first, item._replace(start=item.start + count, count=item.count - count)


def build_batch(
    work: Sequence[Work],
    placement: Placement,
    tables: Tables,
    block_size: int,
    rows_per_page: int,
    sequences: int | None = None,
) -> ModelBatch:
    """Gather the tokens of every piece of work, one after the other, and put them into their rows.

    With `sequences`, work of one token each is filled up to so many by padding: work of slot 0, whose tokens and block
    are nobody's.
    """
    padding = 0 if sequences is None else sequences - len(work)
    slots = np.array([item.slot for item in work] + [0] * padding)
    counts = np.array([item.count for item in work] + [1] * padding)
    firsts = np.array([item.start for item in work] + [0] * padding)
    starts = np.concatenate(([0], counts.cumsum()))
    if padding:
        placement = Placement(np.arange(starts[-1]), int(starts[-1]))
    owners = slots.repeat(counts)
    positions = np.arange(starts[-1]) + (firsts - starts[:-1]).repeat(counts)
    blocks = tables.blocks[owners, positions // block_size]
    image_tokens, tile_rows = _tile_rows(work, starts.tolist(), rows_per_page)
    seq_lens = firsts + counts
    # A table as wide as the longest sequence of the step: most are far from what the model could read.
    table = tables.blocks[slots, : -(-int(seq_lens.max()) // block_size)]
    # All that the device has to know of the step travels as one array, in one copy, and is split there: both lists have
    # one order. What is `spread` has an entry for each row of the batch; starts, lengths and the table are by sequence;
    # the last three name rows.
    parts: tuple[Integers, ...] = (
        *(placement.spread(owners), placement.spread(positions), starts, seq_lens, table.reshape(-1)),
        *(placement.spread(blocks * block_size + positions % block_size), placement.rows),
        *(placement.rows[image_tokens], tile_rows, placement.rows[_chosen_behind(work, starts.tolist())]),
    )
    on_device = to_device_together(parts, tables.device)
    row_owners, row_positions, query_starts, lengths, block_table, kv_slots, token_rows, *rows = on_device
    layout = PagedLayout(
        query_starts=query_starts,
        seq_lens=lengths,
        block_table=block_table.view(table.shape),
        kv_slots=kv_slots,
        token_rows=token_rows,
        counts=counts.tolist(),
        lengths=seq_lens.tolist() if sequences is None else None,
        longest=None if sequences is None else tables.blocks.shape[1] * block_size,
        own_lengths=seq_lens.tolist(),
    )
    token_ids = tables.tokens[row_owners, row_positions]
    return ModelBatch(token_ids, row_positions, layout, *rows)


def _chosen_behind(work: Sequence[Work], starts: Sequence[int]) -> Integers:
    """Return the tokens of the step behind which one is chosen, as indices."""
    stops = zip(starts[1:], work, strict=False)
    return np.array([token for stop, item in stops for token in range(stop - item.num_choices, stop)], np.int64)


def _tile_rows(work: Sequence[Work], starts: Sequence[int], rows_per_page: int) -> tuple[Integers, Integers]:
    """Return the step's image tokens, and the row of the tile pool that each takes; a chunk may cut a tile."""
    targets, sources = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for item, row in zip(work, starts, strict=False):
        for use in item.tiles:
            first = max(use.position, item.start)
            stop = min(use.position + use.rows, item.start + item.count)
            targets.append(np.arange(row + first - item.start, row + stop - item.start))
            in_tile = np.arange(first - use.position, stop - use.position)
            sources.append(use.page * rows_per_page + use.first + in_tile)
    return np.concatenate(targets), np.concatenate(sources)
