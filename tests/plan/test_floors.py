"""Floors against sums made by hand."""

from __future__ import annotations

import pytest

from tilewise.plan.floors import Matrices, RankWork, StageWork
from tilewise.plan.request import Device

SLOW_MEMORY = Device("one", 1, bandwidth=1.0, floats=1e9, int8=2e9)
SLOW_ARITHMETIC = Device("other", 1, bandwidth=1e9, floats=1.0, int8=2.0)
PARTS = {
    "tower": Matrices(1000, 400, 100),
    "projector": Matrices(200, 100),
    "embedding": Matrices(10**6),
    "head": Matrices(70, 30),
    "attention": Matrices(40, 20),
    "mlp": Matrices(600, 0, 500),
}


def work(**changes) -> RankWork:
    usual = {
        "parts": PARTS,
        "tile_tokens": 5,
        "tile_rows": 4,
        "tower_width": 3,
        "query_width": 2,
        "full_layers": 2,
        "window_layers": 0,
        "window": 0,
        "kv_bytes_per_token": 8,
        "experts": None,
    }
    return RankWork(**{**usual, **changes})


def test_a_stage_takes_what_is_slower_of_reading_and_computing():
    stage = StageWork(bytes=10, floats=4, int8=6)
    assert stage.seconds(SLOW_MEMORY) == 10
    assert stage.seconds(SLOW_ARITHMETIC) == 4 + 6 / 2
    assert stage.seconds(Device("?", 1)) is None
    assert stage.seconds(Device("no int8", 1, 1e9, 2.0)) == 2 + 3


def test_a_decode_step_reads_weights_once_and_keys_of_every_sequence():
    found = work().decode(sequences=3, context=10)
    assert found.bytes == 40 + 600 + 70 + 3 * 10 * 8
    assert found.floats == 2 * 3 * (20 + 30) + 4 * 3 * 2 * (2 * 10)
    assert found.int8 == 2 * 3 * 500


def test_a_prompt_reads_weights_in_each_step_and_the_head_once():
    found = work().prompt(tokens=10, steps=2)
    assert found.bytes == 2 * (40 + 600) + 70 + 10 * 8
    assert found.floats == 2 * 10 * 20 + 2 * 30 + 4 * 10 * 2 * (2 * 10) / 2
    assert found.int8 == 2 * 10 * 500


def test_tiles_read_the_tower_once_and_see_themselves_alone():
    found = work().tiles(3)
    assert found.bytes == 1000 + 200
    assert found.floats == 2 * (3 * 5) * 400 + 4 * (3 * 5) * 5 * 3 + 2 * (3 * 4) * 100
    assert found.int8 == 2 * (3 * 5) * 100
    assert work().tiles(0) == StageWork()


def test_of_experts_a_token_takes_some_and_many_tokens_read_all():
    """One of four, evenly: a token reads a quarter, two read 1 - (3/4)^2 of them."""
    spread = work(experts=(4, 1))
    assert spread.decode(1, 10).bytes == 40 + 600 / 4 + 70 + 10 * 8
    assert spread.decode(2, 10).bytes == pytest.approx(40 + 600 * 7 / 16 + 70 + 2 * 10 * 8)
    assert spread.decode(1, 10).int8 == 2 * 500 / 4
    assert spread.decode(1000, 10).bytes == pytest.approx(40 + 600 + 70 + 1000 * 10 * 8)


def test_a_window_ends_what_is_read():
    found = work(full_layers=1, window_layers=1, window=4).decode(1, 10)
    assert found.bytes == 40 + 600 + 70 + 4 * (10 + 4)
    assert found.floats == 2 * (20 + 30) + 4 * 2 * (10 + 4)
