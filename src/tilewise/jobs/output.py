"""The output file, while a run appends to it: whole lines or nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tilewise.errors import InvalidConfig, TilewiseError


class CannotWrite(TilewiseError):
    """The output takes no more: no space, a limit, a disk that fails."""

    @classmethod
    def of(cls, path: Path, error: OSError) -> CannotWrite:
        return cls(f"{path} cannot be written: {error.strerror or error}.")


class Output:
    """Each line goes to the system at once, so that the end of this process loses none; the disk has it by `sync`."""

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
        """Raises CannotWrite, and leaves no part of the line behind."""
        left = memoryview(line)
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as error:
            os.ftruncate(self._file, self._end)
            raise CannotWrite.of(self.path, error) from None
        self._end += len(line)

    def sync(self) -> None:
        """All that was appended before is on the disk after this. Raises CannotWrite."""
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
def alone(path: Path) -> Iterator[None]:
    """While this run is the only one that writes there. The lock ends with the process, however it ends."""
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
    """Names of files are on the disk after this."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
