"""Pages of weight files: they are read before they are needed, and given back once they are copied."""

from __future__ import annotations

import ctypes
import mmap
import sys
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import Thread

from torch import Tensor

from tilewise.config import LoadStrategy

_PIECE = 16 * 2**20  # bytes


def read_ahead(files: Sequence[Path], strategy: LoadStrategy | None) -> Thread | None:
    """Read files that will be mapped, so that the system has them in memory.

    With "eager", all is read when this returns; with "prefetch", a thread, which is returned, reads while the model is
    built.
    """
    if strategy == "eager":
        read_through(files)
    if strategy != "prefetch":
        return None
    thread = Thread(target=read_through, args=(files,), name="prefetch", daemon=True)
    thread.start()
    return thread


def read_through(files: Sequence[Path]) -> int:
    """Read files for the system to keep in memory, and return the number of bytes."""
    piece, total = memoryview(bytearray(_PIECE)), 0
    for path in files:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(piece):
                total += count
    return total


_MAPS = Path("/proc/self/maps")


class MappedPages:
    """The places in memory where some files are mapped, for giving back what is no longer needed.

    A weight that was packed or moved to a device would otherwise be there twice until the system runs short. Only on
    Linux is anything known and given back.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        linux = sys.platform == "linux"
        self._ranges = sorted(_ranges({str(file.resolve()) for file in files})) if linux else []
        self._madvise = ctypes.CDLL(None).madvise if linux else None

    def give_back(self, tensor: Tensor) -> None:
        """Give back the pages that a tensor fills. They come from the file again, so nobody may have changed them.

        A tensor that lies in none of the files, as a copy would, is left alone: its numbers would be lost.
        """
        first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        at = bisect_right(self._ranges, (first, sys.maxsize)) - 1
        if at < 0 or last > self._ranges[at][1]:
            return
        # Only whole pages: the first and the last may also hold other tensors.
        start, stop = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE, last // mmap.PAGESIZE * mmap.PAGESIZE
        if self._madvise is not None and stop > start:
            self._madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED)


def _ranges(files: set[str]) -> Iterable[tuple[int, int]]:
    """Yield first address and end of each mapping of the files, as proc(5) lists them."""
    for line in _MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        addresses, _, _, _, _, *name = line.split(maxsplit=5)
        if name and name[0] in files:
            first, last = addresses.split("-")
            yield int(first, 16), int(last, 16)
