"""Tiles in memory that processes share: who holds which cell, and when it is free again."""

from __future__ import annotations

import os
import pickle
import threading
from collections import deque

import numpy as np
import pytest

from tilewise.errors import Cancelled, InvalidRequest
from tilewise.inputs.media.limits import MediaBudget
from tilewise.inputs.media.tile_memory import Loan, TileFile, TileForm, TileMemory, TileRef, TileStore
from tilewise.types import Tile

SIZE = 28
BUDGET = MediaBudget()


@pytest.fixture
def store() -> TileStore:
    return TileStore(TileFile(), TileForm(6, SIZE))


def tile(value: int) -> Tile:
    return Tile(bytes([value]) * 16, np.full((SIZE, SIZE, 3), value, np.uint8))


def test_a_form_fills_so_many_bytes_with_cells_of_whole_pages():
    assert TileForm.within(10 * 2**14 + 5, SIZE) == TileForm(10, SIZE)
    assert TileForm(1, 448).cell_bytes == 37 * 2**14
    assert TileForm(1, 448).cell_bytes >= 448 * 448 * 3
    assert TileForm.within(1, 448).cells == 1


def test_a_cell_is_taken_as_long_as_any_array_looks_at_it(store):
    (cell,) = store.reserve(1, BUDGET)
    stored = store.put(tile(7), cell)
    assert (stored.pixels == 7).all()
    assert not stored.pixels.flags.writeable
    part = stored.pixels[3:5][::-1]
    del stored
    assert store.num_free == 5
    assert (part == 7).all()
    del part
    assert store.num_free == 6


def test_cells_that_no_tile_was_made_of_are_given_back(store):
    cells = store.reserve(6, BUDGET)
    assert sorted(cells) == list(range(6))
    store.give_back(cells[2:])
    assert store.num_free == 4
    assert store.reserve_now(5) is None
    assert len(store.reserve_now(4) or ()) == 4


def test_more_than_there_is_for_all_is_refused_with_the_remedy(store):
    with pytest.raises(InvalidRequest, match=r"may have 7 tiles.*memory for 6.*raise mm_processor_cache_gb"):
        store.reserve(7, BUDGET)


def test_what_is_kept_for_later_makes_room_and_what_is_in_use_does_not(store):
    kept = [store.put(tile(number), cell) for number, cell in enumerate(store.reserve(6, BUDGET))]
    in_use = kept[0]

    def make_room() -> bool:
        return bool(kept and (kept.pop(0), True))

    store.make_room = make_room
    assert len(store.reserve(3, BUDGET)) == 3
    assert len(kept) == 2
    assert (in_use.pixels == 0).all()


def test_a_request_that_has_to_wait_does_not_empty_the_cache(store):
    """Pictures that the cache could forget are in use here, so that nothing comes of it: one goes, the others stay."""
    kept = [store.put(tile(number), cell) for number, cell in enumerate(store.reserve(6, BUDGET))]
    in_use = list(kept)
    store.make_room = lambda: bool(kept and (kept.pop(0), True))
    assert store.reserve_now(3) is None
    assert len(kept) == 5
    in_use.clear()
    assert len(store.reserve(3, BUDGET)) == 3
    assert len(kept) == 3


def test_whoever_waits_gets_cells_in_the_order_of_asking_and_not_if_they_have_left(store):
    held = store.reserve(6, BUDGET)
    order, leaves = [], MediaBudget()

    def ask(name: str, count: int, budget: MediaBudget) -> None:
        try:
            store.reserve(count, budget)
            order.append(name)
        except Cancelled:
            order.append(f"{name} left")

    threads = []
    for name, count, budget in (("large", 5, BUDGET), ("leaver", 1, leaves), ("small", 1, BUDGET)):
        threads.append(threading.Thread(target=ask, args=(name, count, budget)))
        threads[-1].start()
        while len(store._turns) < len(threads):
            pass
    store.give_back(held[:1])  # enough for the small one, which is not the first
    assert store.reserve_now(1) is None
    leaves.cancel()
    threads[1].join()
    store.give_back(held[1:])
    for thread in threads:
        thread.join()
    assert order == ["leaver left", "large", "small"]


def test_another_process_sees_the_pixels_and_its_loan_ends_with_its_last_array(store):
    stored = [store.put(tile(number), cell) for number, cell in enumerate(store.reserve(2, BUDGET))]
    refs = [pickle.loads(pickle.dumps(one.ref)) for one in stored]
    assert refs == [TileRef(one.digest, one.cell) for one in stored]
    descriptor = os.dup(store.file.descriptor)
    theirs, returned = TileMemory(descriptor, store.form), deque[int]()
    os.close(descriptor)
    loan = Loan(31, returned)
    first, second = (loan.tile(theirs, ref) for ref in refs)
    del loan
    assert [int(one.pixels[0, 0, 0]) for one in (first, second)] == [0, 1]
    view = first.pixels[:1]
    del first
    del second
    assert not returned
    del view
    assert list(returned) == [31]


def test_whoever_has_not_the_memory_gets_the_pixels_themselves(store):
    (cell,) = store.reserve(1, BUDGET)
    found = pickle.loads(pickle.dumps(store.put(tile(9), cell)))
    assert type(found) is Tile
    assert found == tile(9)
    assert (found.pixels == 9).all()
    assert store.num_free == 6
