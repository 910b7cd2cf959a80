"""CappedFolder: files that processes share and keep across restarts, under a cap of bytes.

    <folder>/lock                                  writers take turns
    <folder>/total                                 the sum of all sizes
    <folder>/<group>/<2 digits>/<name>.safetensors group and name are 32 hexadecimal digits

A file's time of change is when it was last used. Nothing is flushed to the device: a file that a power cut tore is
for the reader to notice, and costs less to make again than all files cost to flush.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from tilewise.errors import InvalidConfig

_LEVELS = [re.compile(level) for level in (r"[0-9a-f]{32}", r"[0-9a-f]{2}", r"[0-9a-f]{32}\.(safetensors|tmp)")]
_KEPT = 0.9
"""Share of the cap that stays when something has to go, so that the folder is walked once for each tenth written."""
_PATIENCE = 60.0  # seconds until a lock that another process holds counts as a failure


class CappedFolder:
    """A folder of files under a cap of bytes, which has to hold the largest file at least.

    Raises InvalidConfig if it cannot be made and written to; later every failure is an OSError.

    The recorded total is never below the true one: room is reserved before a file is written, under the lock, and what
    vanishes without notice (a reader's `remove`, a writer that was killed) is found by the next walk.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.evicted = 0
        """Files that this process removed to stay below the cap."""
        self._total = path / "total"
        self._lock = FileLock(path / "lock", timeout=_PATIENCE, poll_interval=0.005)
        try:
            path.mkdir(parents=True, exist_ok=True)
            with self._lock:
                self._record(self._shrink(0))
        except (OSError, NotImplementedError) as error:  # the second where a file system knows no locks
            raise InvalidConfig(f"{path} cannot keep files ({error}): give a folder that can be written to.") from None

    def read(self, group: str, name: str) -> bytes | None:
        """Return a file's content, and mark it as used just now; None if there is no such file."""
        path = self._file(group, name)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        with suppress(OSError):  # it was removed meanwhile, or is another user's and then ages as if it were not used
            os.utime(path)
        return data

    def write(self, group: str, name: str, data: bytes) -> bool:
        """Write a file; return False if another process was faster. A reader sees all of it or nothing."""
        path = self._file(group, name)
        temporary = path.with_suffix(".tmp")  # what a killed writer leaves is counted and grows old like any file
        with self._lock:
            if path.exists():
                return False
            self._make_room(len(data))
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(data)
                temporary.replace(path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
        return True

    def remove(self, group: str, name: str) -> None:
        self._file(group, name).unlink(missing_ok=True)

    def _file(self, group: str, name: str) -> Path:
        return self.path / group / name[:2] / f"{name}.safetensors"

    def _make_room(self, wanted: int) -> None:
        total = self._recorded()
        if total is None or total + wanted > self.max_bytes:
            total = self._shrink(wanted)
        self._record(total + wanted)

    def _shrink(self, wanted: int) -> int:
        """Count the bytes that are there; if `wanted` more are too many, remove files, the longest unused first."""
        files = sorted((stat.st_mtime_ns, stat.st_size, path) for path, stat in _files(self.path, _LEVELS))
        total = sum(size for _, size, _ in files)
        if total + wanted <= self.max_bytes:
            return total
        for _, size, path in files:
            if total + wanted <= _KEPT * self.max_bytes:
                break
            Path(path).unlink(missing_ok=True)
            total -= size
            self.evicted += 1
        return total

    def _recorded(self) -> int | None:
        """Return the recorded total of bytes; None if the record is missing or torn."""
        try:
            text = self._total.read_text(encoding="ascii")
        except (FileNotFoundError, UnicodeDecodeError):
            return None
        return int(text) if re.fullmatch(r"\d+\n", text) else None

    def _record(self, total: int) -> None:
        temporary = self._total.with_suffix(".tmp")
        temporary.write_text(f"{total}\n", encoding="ascii")
        temporary.replace(self._total)


def _files(folder: Path | str, levels: Sequence[re.Pattern[str]]) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the files that were written here; others in the folder are neither counted nor removed."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not levels[0].fullmatch(entry.name):
                continue
            if len(levels) > 1 and entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path, levels[1:])
            elif len(levels) == 1 and entry.is_file(follow_symlinks=False):
                with suppress(FileNotFoundError):  # a reader removed it
                    yield entry.path, entry.stat(follow_symlinks=False)
