"""Pages of mapped files that have been read: they stay in a process's memory until somebody says that they need not.

A weight that was packed or moved to a device would otherwise be there twice until the system runs short.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

_MAPS = Path("/proc/self/maps")


class MappedPages:
    """Where some files are mapped. Elsewhere than on Linux nothing is known, and nothing given back."""

    def __init__(self, files: Iterable[Path]) -> None:
        linux = sys.platform == "linux"
        self._ranges = sorted(_ranges({str(file.resolve()) for file in files})) if linux else []
        self._madvise = ctypes.CDLL(None).madvise if linux else None

    def give_back(self, tensor: Tensor) -> None:
        """The pages that a tensor fills. What is read of it again comes from the file, so nobody may have changed it.

        A tensor that lies in none of the files, as a copy would, is left alone: its numbers would be lost.
        """
        first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        at = bisect_right(self._ranges, (first, sys.maxsize)) - 1
        if at < 0 or last > self._ranges[at][1]:
            return
        start, stop = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE, last // mmap.PAGESIZE * mmap.PAGESIZE
        if self._madvise is not None and stop > start:
            self._madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED)


def _ranges(files: set[str]) -> Iterable[tuple[int, int]]:
    """First and last address of each mapping of the files, as proc(5) lists them."""
    for line in _MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        addresses, _, _, _, _, *name = line.split(maxsplit=5)
        if name and name[0] in files:
            first, last = addresses.split("-")
            yield int(first, 16), int(last, 16)
