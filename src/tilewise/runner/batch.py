"""A plan's work and the tables -> ModelBatch."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from tilewise.models.batch import ModelBatch
from tilewise.platforms.base import PagedLayout
from tilewise.runner.placement import Placement
from tilewise.runner.tables import Tables
from tilewise.step import Work


def build_batch(
    work: tuple[Work, ...], placement: Placement, tables: Tables, block_size: int, rows_per_page: int
) -> ModelBatch:
    """Gather the tokens of every piece of work, one after the other, and put them into their rows."""
    device, slots, counts = tables.device, [item.slot for item in work], [item.count for item in work]
    starts = list(itertools.accumulate(counts, initial=0))
    owners = torch.tensor(slots, device=device).repeat_interleave(torch.tensor(counts, device=device))
    stops = [item.start + item.count for item in work]
    positions = torch.cat(
        [torch.arange(item.start, stop, device=device) for item, stop in zip(work, stops, strict=True)]
    )
    blocks = tables.blocks[owners, positions // block_size]
    image_tokens, tile_rows = _tile_rows(work, starts, rows_per_page, device)
    layout = PagedLayout(
        query_starts=torch.tensor(starts),
        seq_lens=torch.tensor(stops),
        block_table=tables.blocks[slots],
        kv_slots=placement.spread(blocks * block_size + positions % block_size),
        token_rows=placement.rows,
    )
    chosen_behind = [
        row
        for start, item in zip(starts, work, strict=False)
        for row in range(start + item.count - item.rows, start + item.count)
    ]
    return ModelBatch(
        token_ids=placement.spread(tables.tokens[owners, positions]),
        positions=placement.spread(positions),
        layout=layout,
        image_rows=placement.rows[image_tokens],
        tile_rows=tile_rows,
        logits_rows=placement.rows[torch.tensor(chosen_behind, dtype=torch.int64, device=device)],
    )


def _tile_rows(
    work: tuple[Work, ...], starts: list[int], rows_per_page: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Tokens of the step that are image tokens, and the row of the tile pool each takes; a chunk may cut a tile."""
    targets, sources = [], []
    for item, row in zip(work, starts, strict=False):
        for use in item.tiles:
            first = max(use.position, item.start)
            stop = min(use.position + use.rows, item.start + item.count)
            targets.append(torch.arange(row + first - item.start, row + stop - item.start, device=device))
            in_tile = torch.arange(first - use.position, stop - use.position, device=device)
            sources.append(use.page * rows_per_page + use.first + in_tile)
    empty = torch.empty(0, dtype=torch.int64, device=device)
    return torch.cat([empty, *targets]), torch.cat([empty, *sources])
