"""Encoded tiles as files: bit by bit what was written, or nothing; and a thread that writes them."""

from __future__ import annotations

import logging
import random
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.runner.test_capped_folder import largest_file, run_python
from tilewise.runner.tile_store import CappedFolder, EncodedTileFile, EncodedTileStore, StoredTileRows

KEY = "0f" * 16
SHAPE = (5, 12)
FORM = EncodedTileFile(KEY, SHAPE, torch.bfloat16)


def digest(number: int) -> bytes:
    return random.Random(number).randbytes(16)


def tile(number: int, score: float | None = None, dtype: torch.dtype = torch.bfloat16) -> StoredTileRows:
    """Any bits at all: numbers, infinities and every NaN."""
    size = SHAPE[0] * SHAPE[1] * dtype.itemsize
    return StoredTileRows(
        torch.frombuffer(bytearray(random.Random(number).randbytes(size)), dtype=dtype).reshape(SHAPE), score
    )


def same(one: StoredTileRows | None, other: StoredTileRows) -> bool:
    return (
        one is not None
        and one.score == other.score
        and (one.rows.dtype, one.rows.shape) == (other.rows.dtype, other.rows.shape)
        and torch.equal(one.rows.view(torch.uint8), other.rows.view(torch.uint8))
    )


def store_at(path: Path, form: EncodedTileFile = FORM, cap: int = 10**6) -> EncodedTileStore:
    return EncodedTileStore(CappedFolder(path, cap), form)


def files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.safetensors"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("score", [None, 0.0, torch.tensor(0.3).item()])
def test_rows_and_score_come_back_bit_by_bit(tmp_path, dtype, score):
    form = EncodedTileFile(KEY, SHAPE, dtype)
    store_at(tmp_path, form).write(digest(1), tile(1, score, dtype))
    store = store_at(tmp_path, form)
    assert same(store.read(digest(1)), tile(1, score, dtype))
    assert store.read(digest(2)) is None
    assert (store.counts.hits, store.counts.misses, store.counts.damaged) == (1, 1, 0)


def test_rows_that_are_a_part_of_a_batch_are_written_alone():
    batch = torch.stack([tile(number).rows for number in range(16)])
    assert FORM.pack(digest(3), StoredTileRows(batch[3])) == FORM.pack(digest(3), tile(3))


@pytest.mark.parametrize(
    "other",
    [
        EncodedTileFile("1f" * 16, SHAPE, torch.bfloat16),
        EncodedTileFile(KEY, (12, 5), torch.bfloat16),
        EncodedTileFile(KEY, (60,), torch.bfloat16),
        EncodedTileFile(KEY, SHAPE, torch.float16),
    ],
)
def test_files_of_another_model_shape_or_dtype_are_not_its_own(other):
    assert other.unpack(digest(1), FORM.pack(digest(1), tile(1))) is None


def test_a_file_in_the_place_of_another_is_damaged_and_goes(tmp_path):
    store = store_at(tmp_path)
    for number in (1, 2):
        store.write(digest(number), tile(number))
    one, other = files(tmp_path)
    shutil.copy(one, other)
    found = [store.read(digest(number)) for number in (1, 2)]
    assert found.count(None) == 1
    assert store.counts.damaged == 1
    assert files(tmp_path) == [one]
    for number in (1, 2):
        store.write(digest(number), tile(number))
        assert same(store.read(digest(number)), tile(number))
    assert store.counts.written == 3


PACKED = FORM.pack(digest(1), tile(1, 0.5))


@given(st.integers(0, len(PACKED) - 1))
def test_a_file_cut_short_anywhere_is_none(length):
    assert FORM.unpack(digest(1), PACKED[:length]) is None


@settings(max_examples=1000)
@given(st.lists(st.integers(0, 8 * len(PACKED) - 1), min_size=1, max_size=3, unique=True))
def test_bits_that_flipped_anywhere_are_noticed(bits):
    data = bytearray(PACKED)
    for bit in bits:
        data[bit // 8] ^= 1 << bit % 8
    assert FORM.unpack(digest(1), bytes(data)) is None


@given(st.integers(0, len(PACKED) - 1), st.binary(min_size=1, max_size=200))
@example(8 + PACKED[8:].index(b" "), b"\t")
def test_other_bytes_anywhere_never_make_other_numbers(start, garbage):
    data = PACKED[:start] + garbage + PACKED[start + len(garbage) :]
    found = FORM.unpack(digest(1), data)
    assert found is None or (data == PACKED and same(found, tile(1, 0.5)))


@given(st.binary(max_size=300))
def test_anything_else_is_none(data):
    assert FORM.unpack(digest(1), data) is None


def test_tiles_given_are_on_disk_after_close(tmp_path, caplog):
    store = store_at(tmp_path)
    for number in range(40):
        store.write_later(digest(number), tile(number, 0.25))
    with caplog.at_level(logging.INFO, "tilewise"):
        store.close()
    assert store.counts.written == 40
    assert "40 written" in caplog.text
    again = store_at(tmp_path)
    assert all(same(again.read(digest(number)), tile(number, 0.25)) for number in range(40))


def test_a_closed_store_still_reads(tmp_path):
    store = store_at(tmp_path)
    store.write_later(digest(1), tile(1))
    store.close()
    store.write_later(digest(2), tile(2))
    assert same(store.read(digest(1)), tile(1))
    assert store.read(digest(2)) is None


def test_when_writing_is_slow_tiles_are_dropped_and_nobody_waits(tmp_path):
    store = store_at(tmp_path)
    with FileLock(tmp_path / "lock"):  # as if another process were writing all the time
        for number in range(100):
            store.write_later(digest(number), tile(number))
        assert store.counts.written == 0
        assert store.counts.dropped == 100 - 64
    store.close()
    assert store.counts.written == 64


def test_a_full_disk_is_one_warning_and_what_was_kept_is_read(tmp_path, caplog):
    store = store_at(tmp_path)
    store.write(digest(0), tile(0))
    with largest_file(64):
        for number in range(1, 20):
            store.write_later(digest(number), tile(number))
        store.close()
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    assert "keeps no more encoded tiles" in caplog.text
    assert store.counts.written == 1
    assert same(store.read(digest(0)), tile(0))
    assert store.read(digest(1)) is None


def test_a_folder_that_vanishes_is_no_error(tmp_path, caplog):
    store = store_at(tmp_path / "tiles")
    store.write(digest(0), tile(0))
    shutil.rmtree(tmp_path / "tiles")
    assert store.read(digest(0)) is None
    (tmp_path / "tiles").touch()
    for number in range(5):
        store.write(digest(number), tile(number))
        assert store.read(digest(number)) is None
    assert len(caplog.records) == 1


def test_evicted_tiles_are_counted_and_read_as_misses(tmp_path):
    size = len(FORM.pack(digest(0), tile(0)))
    store = store_at(tmp_path, cap=10 * size)
    for number in range(25):
        store.write(digest(number), tile(number))
    assert len(files(tmp_path)) == 25 - store.counts.evicted <= 10
    found = [number for number in range(25) if store.read(digest(number))]
    assert len(found) == store.counts.hits == 25 - store.counts.evicted
    assert 24 in found


def test_an_interpreter_that_ends_without_close_writes_what_waits(tmp_path):
    code = """
import sys
from pathlib import Path
from tests.runner.test_tile_store import digest, store_at, tile
store = store_at(Path(sys.argv[1]))
for number in range(60):
    store.write_later(digest(number), tile(number))
"""
    with run_python(code, tmp_path) as process:
        pass
    assert process.returncode == 0
    store = store_at(tmp_path)
    assert all(same(store.read(digest(number)), tile(number)) for number in range(60))
