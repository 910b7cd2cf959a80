"""The output file: it is appended to by whole lines, read for results of earlier runs, and replaced in one step."""

from __future__ import annotations

import json
import os
import shutil
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from tilewise.errors import InvalidConfig, TilewiseError
from tilewise.jobs.progress import ResultCounts
from tilewise.jobs.result import PREFIX, BatchResult


class CannotWrite(TilewiseError):
    """The output takes no more: no space, a limit, a disk that fails."""

    @classmethod
    def of(cls, path: Path, error: OSError) -> CannotWrite:
        return cls(f"{path} cannot be written: {error.strerror or error}.")


class Output:
    """The output file, opened to append.

    Each line goes to the operating system at once, so that none is lost when this process ends; the disk has it after
    `sync`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            sync_folder(path.parent)
        except OSError as error:
            raise CannotWrite.of(path, error) from None
        self._end = os.fstat(self._file).st_size
        self._synced = self._end

    def append(self, line: bytes) -> None:
        """Append a line. Raises CannotWrite, and then leaves no part of the line behind."""
        left = memoryview(line)
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as error:
            os.ftruncate(self._file, self._end)
            raise CannotWrite.of(self.path, error) from None
        self._end += len(line)

    def sync(self) -> None:
        """Bring all that was appended before to the disk. Raises CannotWrite."""
        # Read before fsync, which runs in a thread: lines that are appended meanwhile may not be on the disk yet.
        end = self._end
        if self._synced == end:
            return
        try:
            os.fsync(self._file)
        except OSError as error:
            raise CannotWrite.of(self.path, error) from None
        self._synced = end

    def close(self) -> None:
        os.close(self._file)


@contextmanager
def output_lock(path: Path) -> Iterator[None]:
    """Hold the output's lock, which ends with the process at the latest. Raises InvalidConfig if another run has it."""
    lock = FileLock(path.with_name(f"{path.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InvalidConfig(
            f"output_file: another run writes {path} (it holds {lock.lock_file}): wait for it, or name another file."
        ) from None
    except OSError as error:
        raise CannotWrite.of(Path(lock.lock_file), error) from None
    try:
        yield
    finally:
        lock.release()


def sync_folder(path: Path) -> None:
    """Bring the names of a folder's files to the disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class OtherInput(TilewiseError):
    """The output holds something else than results of this input, or the input has changed since the run began."""


@dataclass
class Found:
    """The results that an output holds; `finished` has a byte for each line of the input, 1 = its result is there."""

    finished: bytearray
    counts: ResultCounts = field(default_factory=ResultCounts)
    torn: int = 0
    """Bytes of a broken last line, which were cut off."""
    in_order: bool = True
    """True if the results stand in the order of the input."""
    _last: int = 0

    def add(self, result: BatchResult) -> None:
        """Count a result that is in the output."""
        self.finished[result.number - 1] = 1
        self.counts.add(result)
        self.in_order, self._last = self.in_order and result.number > self._last, result.number


def scan(path: Path, digests: array[int]) -> Found:
    """Read what earlier runs left, and cut off a broken last line.

    `digests` are those of the input's lines. Raises OtherInput, and then nothing was changed.
    """
    found = Found(bytearray(len(digests)))
    if not path.exists():
        return found
    start, size = 0, path.stat().st_size
    with path.open("rb") as file:
        for number, data in enumerate(file, 1):
            if start + len(data) == size and _is_torn(data):
                found.torn = len(data)
                break
            found.add(_result(data, f"{path}, line {number}", digests, found.finished))
            start += len(data)
    if found.torn:
        cut(path, start)
    return found


def _is_torn(data: bytes) -> bool:
    """Return whether a last line is the beginning of a result, or the zeros that a loss of power leaves of one."""
    if not data.strip(b"\0\n"):
        return b"\0" in data
    if not PREFIX.startswith(data[: len(PREFIX)]):
        return False
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return True
    return not data.endswith(b"\n")


def _result(data: bytes, where: str, digests: array[int], finished: bytearray) -> BatchResult:
    try:
        result = BatchResult.read(data)
    except ValueError as error:
        raise OtherInput(f"{where} is not a result of a batch run ({error}): name another output.") from None
    number = result.number
    if number > len(digests) or result.digest != digests[number - 1]:
        raise OtherInput(
            f"{where} answers another request {number} than the input has (of {len(digests)}): the output belongs to "
            "another input, or the input has changed. Name another output."
        )
    if finished[number - 1]:
        raise OtherInput(f"{where} answers request {number} of the input once more: a run answers each line once.")
    return result


def cut(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())


def without_failed(path: Path) -> None:
    """Rewrite the output without the lines that failed, so that they are asked again."""
    _replace(path, _succeeded(path))


def sort_output(path: Path, lines: int) -> None:
    """Rewrite the output in the order of the input, which has `lines` lines. Takes 8 bytes of memory a line."""
    _replace(path, _sorted(path, lines))


def _succeeded(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for data in file:
            if not BatchResult.read(data).failed:
                yield data


def _sorted(path: Path, lines: int) -> Iterator[bytes]:
    # The byte at which the result of each line begins, plus 1, as 0 says that a line has no result.
    places = array("Q", bytes(8 * lines))
    with path.open("rb") as file:
        place = 0
        for data in file:
            places[BatchResult.read(data).number - 1] = place + 1
            place += len(data)
        for begin in filter(None, places):
            file.seek(begin - 1)
            yield file.readline()


def _replace(path: Path, lines: Iterable[bytes]) -> None:
    # The new file is whole on the disk before it takes the name of the old one, so a crash leaves either of them.
    new = path.with_name(f"{path.name}.new")
    try:
        with new.open("wb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(path, new)
        new.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise CannotWrite.of(new, error) from None
