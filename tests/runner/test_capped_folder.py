"""Files under a cap: what goes first, what others do to the folder meanwhile, and what a killed writer leaves."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from multiprocessing.context import ForkProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewise.errors import InvalidConfig
from tilewise.runner.tile_store import CappedFolder

GROUP = "ab" * 16
SIZE = 1000


def name(number: int) -> str:
    return hashlib.md5(str(number).encode()).hexdigest()


def content(number: int, size: int = SIZE) -> bytes:
    return random.Random(number).randbytes(size)


def used(folder: Path) -> int:
    """Bytes of files, whole and unfinished, by the file system's own account."""
    sizes = []
    for path in [*folder.rglob("*.safetensors"), *folder.rglob("*/*/*.tmp")]:
        with contextlib.suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return sum(sizes)


def kept(folder: CappedFolder, count: int) -> list[int]:
    return [number for number in range(count) if folder._file(GROUP, name(number)).exists()]


def age(folder: CappedFolder, number: int, hours: float) -> None:
    then = time.time() - 3600 * hours
    os.utime(folder._file(GROUP, name(number)), (then, then))


def test_what_is_written_is_read_also_after_a_restart(tmp_path):
    folder = CappedFolder(tmp_path / "a" / "b", 10 * SIZE)
    assert folder.read(GROUP, name(1)) is None
    assert folder.write(GROUP, name(1), content(1))
    assert not folder.write(GROUP, name(1), content(2))
    for opened in (folder, CappedFolder(tmp_path / "a" / "b", 10 * SIZE)):
        assert opened.read(GROUP, name(1)) == content(1)
        assert opened.read("cd" * 16, name(1)) is None


def test_the_longest_unused_go_first(tmp_path):
    folder = CappedFolder(tmp_path, 10 * SIZE)
    for number in range(10):
        folder.write(GROUP, name(number), content(number))
        age(folder, number, hours=20 - number)
    for number in (0, 3):
        folder.read(GROUP, name(number))
    folder.write(GROUP, name(10), content(10))
    assert kept(folder, 11) == [0, 3, 4, 5, 6, 7, 8, 9, 10]  # a tenth is freed at a time
    assert folder.evicted == 2


def test_the_order_of_use_survives_a_restart_with_a_smaller_cap(tmp_path):
    folder = CappedFolder(tmp_path, 10 * SIZE)
    for number in range(10):
        folder.write(GROUP, name(number), content(number))
        age(folder, number, hours=number)
    assert kept(CappedFolder(tmp_path, 4 * SIZE), 10) == [0, 1, 2]


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2000), st.booleans()), max_size=60))
def test_the_cap_holds_after_every_write(steps):
    with tempfile.TemporaryDirectory() as path:
        folder = CappedFolder(Path(path), 5000)
        for number, size, restart in steps:
            folder.write(GROUP, name(number), content(number, size))
            assert used(Path(path)) <= 5000
            if restart:
                folder = CappedFolder(Path(path), 5000)


@pytest.mark.parametrize("record", [None, b"", b"12", b"-3\n", b"\xff\xfe\n", b"99999999999999999999\n"])
def test_a_lost_or_torn_record_of_the_total_is_counted_again(tmp_path, record):
    folder = CappedFolder(tmp_path, 10 * SIZE)
    for number in range(9):
        folder.write(GROUP, name(number), content(number))
    (tmp_path / "total").unlink()
    if record is not None:
        (tmp_path / "total").write_bytes(record)
    folder.write(GROUP, name(9), content(9))
    assert len(kept(folder, 10)) == 10
    folder.write(GROUP, name(10), content(10))
    assert used(tmp_path) <= 10 * SIZE


def test_files_of_others_are_neither_counted_nor_removed(tmp_path):
    strangers = [
        tmp_path / "model.safetensors",
        tmp_path / GROUP / "notes.txt",
        tmp_path / GROUP / "ab" / "model.safetensors",
        tmp_path / "photos" / "ab" / f"{name(0)}.safetensors",
        tmp_path / GROUP.upper() / "ab" / f"{name(0)}.safetensors",
    ]
    for path in strangers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"0" * 50 * SIZE)
        os.utime(path, (0, 0))
    (tmp_path / ("ef" * 16)).symlink_to(tmp_path / "photos")
    folder = CappedFolder(tmp_path, 5 * SIZE)
    for number in range(20):
        folder.write(GROUP, name(number), content(number))
    assert all(path.exists() for path in strangers)
    assert len(kept(folder, 20)) >= 4


def test_what_a_killed_writer_left_counts_and_goes(tmp_path):
    left = tmp_path / GROUP / "ab" / f"{name(0)}.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"0" * 4 * SIZE)
    os.utime(left, (0, 0))
    folder = CappedFolder(tmp_path, 5 * SIZE)
    folder.write(GROUP, name(1), content(1))
    assert left.exists()
    folder.write(GROUP, name(2), content(2))
    assert not left.exists()
    assert kept(folder, 3) == [1, 2]


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process of its own that can import these tests."""
    root = Path(__file__).parents[2]
    paths = os.pathsep.join((str(root), str(root / "src")))
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths})


def write_many(path: Path, cap: int, first: int, count: int, ready: Event) -> None:
    folder = CappedFolder(path, cap)
    ready.set()
    for number in range(first, first + count):
        folder.write(GROUP, name(number), content(number))


def writer(path: Path, cap: int, first: int, count: int) -> ForkProcess:
    """A process that writes; forked, as one that begins anew takes seconds to import what this one has."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=write_many, args=(path, cap, first, count, ready), daemon=True)
    process.start()
    assert ready.wait(60)
    return process


# pytest-xdist has a thread of its own in this process.
forking = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


@forking
def test_two_processes_keep_one_cap(tmp_path):
    cap = 20 * SIZE
    one, other = writer(tmp_path, cap, 0, 200), writer(tmp_path, cap, 100, 200)  # they share a hundred files
    most = 0
    while one.is_alive() or other.is_alive():
        most = max(most, used(tmp_path))
    assert (one.exitcode, other.exitcode) == (0, 0)
    assert most <= cap + SIZE  # a file that is renamed during the count may be counted twice
    assert 10 * SIZE < used(tmp_path) <= cap
    folder = CappedFolder(tmp_path, cap)
    assert all(folder.read(GROUP, name(number)) == content(number) for number in kept(folder, 300))


@forking
def test_a_writer_killed_at_any_moment_leaves_whole_files_and_the_cap(tmp_path):
    cap, moments = 50 * SIZE, random.Random(0)
    found = 0
    for attempt in range(10):
        process = writer(tmp_path, cap, 1000 * attempt, 10**6)
        time.sleep(moments.uniform(0, 0.03))
        process.kill()
        process.join()
        folder = CappedFolder(tmp_path, cap)  # the lock is free again
        assert used(tmp_path) <= cap
        for number in range(1000 * attempt, 1000 * attempt + 1000):
            data = folder.read(GROUP, name(number))
            assert data in (None, content(number))
            found += data is not None
        assert folder.write(GROUP, name(-attempt - 1), content(-attempt - 1))
    assert found > 0


@contextlib.contextmanager
def ordinary_user():
    """Root may write anywhere, so for a while this process is nobody."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public_folder():
    """Outside of pytest's own folder, which nobody but its owner may enter."""
    path = Path(tempfile.mkdtemp())
    yield path
    path.chmod(0o755)
    shutil.rmtree(path)


@pytest.mark.parametrize("begun", [False, True])
def test_a_folder_that_may_not_be_written_to_is_refused(public_folder, begun):
    if begun:
        CappedFolder(public_folder, SIZE)
    public_folder.chmod(0o555)
    with ordinary_user(), pytest.raises(InvalidConfig, match=r"cannot keep files .*give a folder that can be written"):
        CappedFolder(public_folder, SIZE)


def test_a_path_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidConfig, match="cannot keep files"):
        CappedFolder(tmp_path / "file" / "tiles", SIZE)


@contextlib.contextmanager
def largest_file(size: int):
    """The kernel refuses to write more into a file, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    folder = CappedFolder(tmp_path, 10 * SIZE)
    with largest_file(SIZE // 2), pytest.raises(OSError):
        folder.write(GROUP, name(1), content(1))
    assert folder.read(GROUP, name(1)) is None
    assert used(tmp_path) == 0
    assert folder.write(GROUP, name(1), content(1))
    assert folder.read(GROUP, name(1)) == content(1)
