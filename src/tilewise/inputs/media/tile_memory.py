"""Memory of tiles that processes share, so that pixels travel by number: a file without a name, cut into cells.

Whoever cuts a picture writes its tiles into cells, whoever encodes it reads them there, and nothing is sent but the
numbers of the cells. A cell is free again when the last array over it is gone, here and in the engine's process
(`Loan`): no path through either of them has to remember to give it back.
"""

from __future__ import annotations

import gc
import mmap
import os
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewise.errors import InvalidRequest
from tilewise.types import Tile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tilewise.inputs.media.limits import MediaBudget

_LOOK = 0.02
"""Seconds between looks for cells that have become free, and for callers who have left."""
_GARBAGE = 100
"""Looks between searches for garbage."""


class TileFile:
    """A file without a name, which is gone with the last process that has it open. It takes memory as it is written."""

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self.descriptor = os.memfd_create("tilewise-tiles")
        else:  # macOS
            with tempfile.TemporaryFile() as file:
                self.descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.descriptor)

    def take(self, form: TileForm) -> None:
        """Get a form, before anybody reads or writes."""
        os.ftruncate(self.descriptor, form.num_bytes)


@dataclass(frozen=True, slots=True)
class TileForm:
    """The form of a tile file: so many cells, each of one tile of `size` x `size` pixels."""

    cells: int
    size: int

    @classmethod
    def within(cls, num_bytes: int, size: int) -> TileForm:
        return cls(max(1, num_bytes // cls(1, size).cell_bytes), size)

    @property
    def cell_bytes(self) -> int:
        """Bytes from one cell to the next: whole pages of memory (16 KiB is the largest that there is)."""
        return -(-3 * self.size**2 // 2**14) * 2**14

    @property
    def num_bytes(self) -> int:
        return self.cells * self.cell_bytes


class _Cell:
    """The owner of the memory of an array over a cell: it calls `end` when no array needs it any more."""

    def __init__(self, interface: dict[str, Any], end: Callable[[], None]) -> None:
        self.__array_interface__ = interface
        self._end = end

    def __del__(self) -> None:
        self._end()


class TileMemory:
    """A tile file in the memory of a process."""

    def __init__(self, descriptor: int, form: TileForm) -> None:
        self.form = form
        self._map = mmap.mmap(descriptor, form.num_bytes)
        self._bytes = np.frombuffer(self._map, np.uint8)

    def place(self, cell: int) -> NDArray[np.uint8]:
        """Return the cell's pixels, to be written: uint8 [size, size, 3]."""
        size = self.form.size
        start = cell * self.form.cell_bytes
        return self._bytes[start : start + 3 * size**2].reshape(size, size, 3)

    def pixels(self, cell: int, end: Callable[[], None]) -> NDArray[np.uint8]:
        """Return the cell's pixels, to be read: `end` is called when no array over them is left, in whatever thread."""
        interface = {**self.place(cell).__array_interface__}
        interface["data"] = (interface["data"][0], True)
        # numpy keeps an object whose `__array_interface__` it reads as the base of the array and of all views on it, so
        # `_Cell.__del__` runs when the last of them is gone: nowhere else is the cell of a tile given back.
        return np.asarray(_Cell(interface, end))


@dataclass(frozen=True, slots=True)
class TileRef:
    """A tile as it travels to the engine's process: its digest, and the cell of its pixels."""

    digest: bytes
    cell: int


@dataclass(frozen=True, slots=True)
class StoredTile(Tile):
    """A tile whose pixels are in a cell."""

    cell: int

    @property
    def ref(self) -> TileRef:
        return TileRef(self.digest, self.cell)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as a tile with its pixels, to whoever has not the same memory."""
        return Tile, (self.digest, np.array(self.pixels))


class TileStore:
    """The cells of a tile file, given out by the one process that fills them. Threads may share an instance.

    `make_room` is asked when cells are short, and gives up something that holds some; it returns whether it could.
    """

    def __init__(self, file: TileFile, form: TileForm, make_room: Callable[[], bool] = lambda: False) -> None:
        file.take(form)
        self.file, self.form = file, form
        self.make_room = make_room
        self._memory = TileMemory(file.descriptor, form)
        self._free = list(range(form.cells - 1, -1, -1))
        self._returned: deque[int] = deque()  # by arrays that end, in the middle of anything, so that no lock is taken
        self._lock = threading.Lock()
        self._turns: deque[object] = deque()  # of callers who wait, the longest first

    @property
    def num_free(self) -> int:
        return len(self._free) + len(self._returned)

    @property
    def usage(self) -> float:
        """Share of the cells that is in use."""
        return 1 - self.num_free / self.form.cells

    def reserve(self, count: int, budget: MediaBudget) -> list[int]:
        """Return `count` cells, once they are free and all who asked before have theirs.

        Raises InvalidRequest for more than there are, and Cancelled when the caller's request is given up.
        """
        if count > self.form.cells:
            raise InvalidRequest(
                f"The pictures may have {count} tiles, and there is memory for {self.form.cells} of all requests: send "
                "fewer, ask for a smaller max_dynamic_patch, or raise mm_processor_cache_gb."
            )
        turn, looks = object(), 0
        self._turns.append(turn)
        try:
            while True:
                budget.check()
                cells = self._take(count) if self._turns[0] is turn else None
                if cells is not None:
                    return cells
                budget.cancelled.wait(_LOOK)
                looks += 1
                if looks % _GARBAGE == 0:  # requests that failed may hold tiles in circles
                    gc.collect()
        finally:
            self._turns.remove(turn)

    def reserve_now(self, count: int) -> list[int] | None:
        """Return `count` cells if they can be had at once and nobody waits for some."""
        return None if self._turns or count > self.form.cells else self._take(count)

    def _take(self, count: int) -> list[int] | None:
        while True:
            with self._lock:
                while self._returned:
                    self._free.append(self._returned.popleft())
                if len(self._free) >= count:
                    taken = self._free[len(self._free) - count :]
                    del self._free[len(self._free) - count :]
                    return taken
            before = self.num_free
            # What is given up may be in use by a request in flight, and then its cells come back later. One such at a
            # look is enough: else a single request that has to wait would empty the cache for nothing.
            if not self.make_room() or self.num_free <= before:
                return None

    def give_back(self, cells: Sequence[int]) -> None:
        """Take cells back that no tile was made of."""
        self._returned.extend(cells)

    def put(self, tile: Tile, cell: int) -> StoredTile:
        """Write a tile into a cell that was reserved."""
        self._memory.place(cell)[:] = tile.pixels
        return self.tile(tile.digest, cell)

    def tile(self, digest: bytes, cell: int) -> StoredTile:
        """Return the tile whose pixels are in a reserved cell, which is free again when nobody has the tile."""
        return StoredTile(digest, self._memory.pixels(cell, lambda: self._returned.append(cell)), cell)


class Loan:
    """The tiles of one request in the engine's process. `returned` gets its number when no array over them is left."""

    def __init__(self, number: int, returned: deque[int]) -> None:
        self._number, self._returned = number, returned

    def __del__(self) -> None:
        self._returned.append(self._number)

    def tile(self, memory: TileMemory, ref: TileRef) -> Tile:
        return Tile(ref.digest, memory.pixels(ref.cell, self._keep))

    def _keep(self) -> None:
        """Do nothing. A bound method, passed as the array's `end` callback only so that the array holds a reference to
        this Loan.
        """
