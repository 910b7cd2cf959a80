"""EncodeCore over a tower that only counts: what is encoded, what is kept, and who gets it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tilewise.engine.encode_core import EncodeCore, EncodedDelta
from tilewise.sampling_params import SamplingParams
from tilewise.types import ImageInput, Request, Tile

ROW = 8  # bytes of a tile's rows


class CountingTower:
    sizes = (4, 2, 1)

    def __init__(self, on_disk: Sequence[int] = ()) -> None:
        self.batches: list[list[int]] = []
        self.on_disk = {name(number) for number in on_disk}
        self.recalled: list[int] = []

    def recall(self, digest: bytes):
        self.recalled.append(digest[-1])
        return rows_of(digest) if digest in self.on_disk else None

    def encode(self, tiles: Sequence[Tile]):
        self.batches.append([tile.digest[-1] for tile in tiles])
        return [rows_of(tile.digest) for tile in tiles]

    def close(self) -> None:
        pass


def name(number: int) -> bytes:
    return number.to_bytes(16, "big")


def rows_of(digest: bytes):
    return np.full((1, 2), digest[-1], np.float32)


def asks(request_id: str, *numbers: int) -> Request:
    tiles = tuple(Tile(name(number), np.zeros((1, 1, 3), np.uint8)) for number in numbers)
    return Request(request_id, (), SamplingParams(), (ImageInput(tiles, (len(tiles), 1), (1, 1), 0),))


def finish(core: EncodeCore) -> dict[str, EncodedDelta]:
    found = {}
    while core.has_unfinished:
        found |= {delta.request_id: delta for delta in core.step()}
    return found


def told(delta: EncodedDelta) -> list[int]:
    return [int(rows[0, 0]) for rows in delta.rows]


def test_tiles_of_several_requests_share_batches():
    core = EncodeCore(tower := CountingTower(), 100 * ROW)
    core.submit(asks("a", 1, 2, 3))
    core.submit(asks("b", 4, 5))
    assert core.step()[0].request_id == "a"
    assert tower.batches == [[1, 2, 3, 4]]
    assert [told(delta) for delta in core.step()] == [[4, 5]]
    assert tower.batches == [[1, 2, 3, 4], [5]]


def test_batches_have_the_sizes_that_there_are():
    core = EncodeCore(tower := CountingTower(), 100 * ROW)
    core.submit(asks("a", 1, 2, 3))
    finish(core)
    assert [len(batch) for batch in tower.batches] == [2, 1]


def test_the_tower_is_asked_once_for_each_tile_of_a_request():
    core = EncodeCore(tower := CountingTower(on_disk=[6]), 100 * ROW)
    core.submit(asks("a", *range(1, 10)))
    found = finish(core)
    assert told(found["a"]) == [*range(1, 10)]
    assert tower.batches == [[1, 2, 3, 4], [5, 7, 8, 9]]
    assert tower.recalled == [*range(1, 10)]


def test_a_tile_is_encoded_once_whoever_asks():
    core = EncodeCore(tower := CountingTower(), 100 * ROW)
    core.submit(asks("a", 1, 2, 1))
    core.submit(asks("b", 2, 3))
    found = finish(core)
    core.submit(asks("c", 3, 1, 9))
    found |= finish(core)
    assert sorted(number for batch in tower.batches for number in batch) == [1, 2, 3, 9]
    assert {key: told(delta) for key, delta in found.items()} == {"a": [1, 2, 1], "b": [2, 3], "c": [3, 1, 9]}
    assert found["a"].cached == (False, False, False)
    assert found["c"].cached == (True, True, False)
    counters = core.counters
    assert (counters.tiles_encoded, counters.tile_cache_queries, counters.tile_cache_hits) == (4, 8, 2)


def test_what_is_on_disk_is_not_encoded():
    core = EncodeCore(tower := CountingTower(on_disk=range(1, 7)), 100 * ROW)
    core.submit(asks("a", 1, 2, 3, 4, 5, 6, 7))
    assert finish(core)["a"].cached == (True,) * 6 + (False,)
    assert tower.batches == [[7]]


@pytest.mark.parametrize(("room", "again"), [(2, [1]), (3, []), (0, [1, 3])])
def test_the_longest_unused_tile_goes(room, again):
    core = EncodeCore(tower := CountingTower(), room * ROW)
    for number in (1, 2, 3):
        core.submit(asks("a", number))
        finish(core)
    core.submit(asks("b", 3))
    core.submit(asks("c", 1))
    finish(core)
    assert sorted(number for batch in tower.batches[3:] for number in batch) == again


def test_use_keeps_a_tile():
    core = EncodeCore(tower := CountingTower(), 2 * ROW)
    for number in (1, 2, 1, 3, 1):
        core.submit(asks("a", number))
        finish(core)
    assert tower.batches == [[1], [2], [3]]


def test_an_aborted_request_costs_nothing_more():
    core = EncodeCore(tower := CountingTower(), 100 * ROW)
    core.submit(asks("a", *range(1, 9)))
    core.step()
    core.abort("a")
    core.abort("unknown")
    assert not core.has_unfinished
    assert core.step() == []
    assert tower.batches == [[1, 2, 3, 4]]


def test_a_reset_forgets_what_is_in_memory():
    core = EncodeCore(tower := CountingTower(), 100 * ROW)
    for _ in range(2):
        core.submit(asks("a", 1))
        finish(core)
        assert core.reset("tiles")
    assert len(tower.batches) == 2
