"""TileStore: encoded tiles of one model on disk, so that a tile met again tomorrow needs no encoder."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from threading import BoundedSemaphore

from tilewise.runner.capped_folder import CappedFolder
from tilewise.runner.tile_file import StoredTile, TileFile

logger = logging.getLogger("tilewise")

_WAITING = 64
"""Tiles that may wait to be written, some ten megabytes; beyond, the disk is slower than the encoder and tiles are
dropped rather than waited for."""


@dataclass(slots=True)
class TileCounts:
    """What has become of tiles, since the start."""

    hits: int = 0
    misses: int = 0
    damaged: int = 0
    """Misses whose file was there, but not as it was written; it is removed."""
    written: int = 0
    evicted: int = 0
    dropped: int = 0
    """Not written because too many waited."""


class TileStore:
    """Reads at once, writes in a thread of its own. Nothing that happens to the disk is an error here.

    The first failure is a warning, and nothing is written after it; what can be read still is.
    """

    def __init__(self, folder: CappedFolder, form: TileFile) -> None:
        self.counts = TileCounts()
        self._folder = folder
        self._form = form
        self._writing = True
        self._room = BoundedSemaphore(_WAITING)
        # Its threads are joined when the interpreter exits, so tiles are written even if nobody calls `close`.
        self._writer = ThreadPoolExecutor(1, "tile-store")

    def read(self, digest: bytes) -> StoredTile | None:
        """The tile, bit by bit as it was written, or None."""
        tile = self._read(digest)
        if tile is None:
            self.counts.misses += 1
        else:
            self.counts.hits += 1
        return tile

    def _read(self, digest: bytes) -> StoredTile | None:
        try:
            data = self._folder.read(self._form.model_key, digest.hex())
            if data is None:
                return None
            tile = self._form.unpack(digest, data)
            if tile is None:
                self.counts.damaged += 1
                self._folder.remove(self._form.model_key, digest.hex())
            return tile
        except OSError as error:
            self._give_up(error)
            return None

    def write_later(self, digest: bytes, tile: StoredTile) -> None:
        """Returns at once. The rows must not be written to afterwards; they may be on a device."""
        if not self._writing:
            return
        if not self._room.acquire(blocking=False):
            self.counts.dropped += 1
            return
        self._writer.submit(self.write, digest, tile).add_done_callback(self._settle)

    def write(self, digest: bytes, tile: StoredTile) -> None:
        if not self._writing:
            return
        try:
            self.counts.written += self._folder.write(self._form.model_key, digest.hex(), self._form.pack(digest, tile))
            self.counts.evicted = self._folder.evicted
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Write what waits. Afterwards tiles are still read, and no longer written."""
        self._writer.shutdown()
        self._writing = False
        counts = ", ".join(f"{count} {name}" for name, count in asdict(self.counts).items())
        logger.info("Encoded tiles in %s: %s", self._folder.path, counts)

    def _settle(self, written: Future[None]) -> None:
        self._room.release()
        if error := written.exception():  # a defect: what a disk can do to a write is handled there
            logger.error("Writing an encoded tile failed", exc_info=error)

    def _give_up(self, error: OSError) -> None:
        if self._writing:
            self._writing = False
            logger.warning("%s keeps no more encoded tiles: %s", self._folder.path, error)
