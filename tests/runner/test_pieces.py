"""Pieces of a step for the stages of a pipeline."""

from __future__ import annotations

import random

import pytest

from tilewise.runner.runner import pieces_of
from tilewise.step import Work


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
