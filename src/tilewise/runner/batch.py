"""A plan's work and the tables -> ModelBatch.

Everything but the tokens is known on the host, is laid out there in one array, and goes to the device in one copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tilewise.models.batch import ModelBatch
from tilewise.platforms.base import PagedLayout
from tilewise.platforms.transfers import sent
from tilewise.runner.placement import Integers, Placement
from tilewise.runner.tables import Tables
from tilewise.step import Work


def build_batch(
    work: Sequence[Work],
    placement: Placement,
    tables: Tables,
    block_size: int,
    rows_per_page: int,
    sequences: int | None = None,
) -> ModelBatch:
    """Gather the tokens of every piece of work, one after the other, and put them into their rows.

    With `sequences`, work of one token each is filled up to so many: slot 0's, whose tokens, blocks and block are
    nobody's.
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
    seq_lens, table = firsts + counts, tables.blocks[slots]
    parts = (
        *(placement.spread(owners), placement.spread(positions), starts, seq_lens, table.reshape(-1)),
        *(placement.spread(blocks * block_size + positions % block_size), placement.rows),
        *(placement.rows[image_tokens], tile_rows, placement.rows[_chosen_behind(work, starts.tolist())]),
    )
    on_device = _sent_together(parts, tables.device)
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
    )
    token_ids = tables.tokens[row_owners, row_positions]
    return ModelBatch(token_ids, row_positions, layout, *rows)


def _sent_together(parts: Sequence[Integers], device: torch.device) -> tuple[Tensor, ...]:
    whole = sent(np.concatenate(parts), device)
    parted: tuple[Tensor, ...] = whole.split([len(part) for part in parts])
    return parted


def _chosen_behind(work: Sequence[Work], starts: Sequence[int]) -> Integers:
    """Tokens of the step behind which one is chosen."""
    stops = zip(starts[1:], work, strict=False)
    return np.array([token for stop, item in stops for token in range(stop - item.rows, stop)], np.int64)


def _tile_rows(work: Sequence[Work], starts: Sequence[int], rows_per_page: int) -> tuple[Integers, Integers]:
    """Tokens of the step that are image tokens, and the row of the tile pool each takes; a chunk may cut a tile."""
    targets, sources = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for item, row in zip(work, starts, strict=False):
        for use in item.tiles:
            first = max(use.position, item.start)
            stop = min(use.position + use.rows, item.start + item.count)
            targets.append(np.arange(row + first - item.start, row + stop - item.start))
            in_tile = np.arange(first - use.position, stop - use.position)
            sources.append(use.page * rows_per_page + use.first + in_tile)
    return np.concatenate(targets), np.concatenate(sources)
