"""Rows of a batch, in order or every token at its own place of a panel; pieces of a step for stages of a pipeline."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.engine.fake import limits
from tilewise.errors import EngineStuck
from tilewise.platforms.ops import INVARIANT_ROWS
from tilewise.runner.batch import Placement, Tables, build_batch, pieces_of, place_in_order, place_in_panels
from tilewise.step import BlockGrant, Work


def work(*spans: tuple[int, int]) -> list[Work]:
    return [Work(slot + 1, start, count, samples=True) for slot, (start, count) in enumerate(spans)]


def positions(items: list[Work]) -> np.ndarray:
    return np.concatenate([np.arange(item.start, item.start + item.count) for item in items])


@pytest.mark.parametrize(("lengths", "blocks"), [((4, 1), 1), ((5, 1), 2), ((5, 12), 3)], ids=str)
@pytest.mark.parametrize("padded", [False, True])
def test_the_block_table_is_as_wide_as_the_longest_sequence_of_the_step(lengths, blocks, padded):
    sizes = replace(limits(), max_model_len=4 * 9, block_size=4)
    tables = Tables(sizes, torch.device("cpu"))
    tables.blocks[:] = np.arange(tables.blocks.size).reshape(tables.blocks.shape)
    items = work(*((length - 1, 1) for length in lengths))
    batch = build_batch(items, place_in_order(items), tables, 4, 1, sequences=4 if padded else None)
    table = batch.layout.block_table
    assert table.tolist() == tables.blocks[[1, 2, 0, 0][: len(table)], :blocks].tolist()


def test_in_order_rows_are_counted():
    placement = place_in_order(work((7, 3), (0, 2)))
    assert placement.rows.tolist() == [0, 1, 2, 3, 4]
    assert placement.total == 5


@pytest.mark.parametrize("seed", range(30))
def test_every_token_has_the_place_of_its_position_to_itself(seed):
    draw = random.Random(seed)
    items = work(*[(draw.randrange(100), draw.choice([1, 1, 1, 5, 40, 97])) for _ in range(draw.randint(1, 12))])
    placement = place_in_panels(items)
    assert np.array_equal(placement.rows % INVARIANT_ROWS, positions(items) % INVARIANT_ROWS)
    assert len(np.unique(placement.rows)) == len(placement.rows)
    assert placement.total % INVARIANT_ROWS == 0
    assert placement.rows.max() < placement.total


def test_what_decodes_at_other_places_shares_a_panel():
    assert place_in_panels(work(*[(start, 1) for start in range(40, 72)])).total == INVARIANT_ROWS
    assert place_in_panels(work((40, 1), (40 + INVARIANT_ROWS, 1))).total == 2 * INVARIANT_ROWS


def test_a_prompt_fills_panels_and_others_take_what_it_leaves():
    """Its own last positions share the first panel with its first ones; what is left has no place 3 any more."""
    placement = place_in_panels(work((10, 60), (3, 1), (75, 4)))
    assert placement.total == 3 * INVARIANT_ROWS
    assert placement.rows[60:].tolist() == [
        INVARIANT_ROWS * 2 + 3,
        INVARIANT_ROWS * 2 + 11,
        INVARIANT_ROWS * 2 + 12,
        INVARIANT_ROWS * 2 + 13,
        INVARIANT_ROWS * 2 + 14,
    ]


def test_padding_has_zeros():
    assert Placement(np.array([3, 1]), 5).spread(np.array([8, 9])).tolist() == [0, 9, 0, 8, 0]


def tokens(items: list[Work]) -> list[tuple[int, int]]:
    return [(item.slot, position) for item in items for position in range(item.start, item.stop)]


@pytest.mark.parametrize("seed", range(30))
def test_every_token_is_in_one_piece_and_in_order(seed: int) -> None:
    draw = random.Random(seed)
    work = [
        Work(slot, draw.randrange(50), draw.choice([1, 1, 3, 90, 500, 1300]), samples=draw.random() < 0.7)
        for slot in range(1, draw.randint(2, 9))
    ]
    total, most = sum(item.count for item in work), draw.choice([2, 8, 16])
    pieces = pieces_of(work, most)
    assert tokens([item for piece in pieces for item in piece]) == tokens(work)
    assert len(pieces) == max(1, min(most, total // 128))
    sizes = [sum(item.count for item in piece) for piece in pieces]
    assert max(sizes) - min(sizes) <= 1
    assert not any(item.samples for piece in pieces for item in piece)


def test_few_tokens_are_one_piece() -> None:
    work = [Work(slot, 10, 1, samples=True) for slot in range(1, 65)]
    assert tokens(pieces_of(work, 8)[0]) == tokens(work)
    assert len(pieces_of(work, 8)) == 1


@pytest.mark.parametrize(
    "grant", [BlockGrant(1, 0, (33,)), BlockGrant(1, 0, (4, -1)), BlockGrant(1, 0, (0,)), BlockGrant(9, 0, (1,))]
)
def test_a_block_that_no_cache_has_gets_into_no_table(grant):
    """Kernels read and write where the tables say."""
    tables = Tables(limits(), torch.device("cpu"))
    tables.grant(BlockGrant(4, 2, (1, 32)))
    assert tables.blocks[4, 2:4].tolist() == [1, 32]
    with pytest.raises(EngineStuck, match="does not lie in a cache of 33 blocks and 5 slots"):
        tables.grant(grant)
