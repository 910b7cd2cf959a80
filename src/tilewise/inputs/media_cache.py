"""Pictures already cut: one that is sent again, by whoever, is recognised by its pixels and not cut again.

The name of an entry is a digest of all that its tiles depend on. Several threads may prepare requests at once.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tilewise.amounts import GIB, in_bytes
from tilewise.host.memory import available_memory
from tilewise.inputs.orientation import orientation
from tilewise.types import AnyTile, Grid

if TYPE_CHECKING:
    from PIL import Image

    from tilewise.inputs.images import Tiling

logger = logging.getLogger("tilewise")
_DEFAULT = 4 * GIB


@dataclass(frozen=True, slots=True)
class CutPicture:
    """Tiles of a picture or of a frame, thumbnail last."""

    tiles: tuple[AnyTile, ...]
    grid: Grid
    size: tuple[int, int]
    """Of the picture, in pixels; zeros, where it came encoded."""

    @property
    def num_bytes(self) -> int:
        return sum(tile.num_bytes for tile in self.tiles)


@dataclass(frozen=True, slots=True)
class CacheCounts:
    """Since the start."""

    queries: int = 0
    hits: int = 0


class MediaCache:
    """The most recently used pictures, up to so many bytes of tiles; 0 = none, and nothing is asked."""

    @classmethod
    def of(cls, gigabytes: float | None) -> MediaCache:
        """Up to so many GiB; None = 4, or a quarter of what this machine or its container has free now, if less."""
        if gigabytes is not None:
            return cls(int(gigabytes * GIB))
        free = available_memory().free
        bound = min(_DEFAULT, free // 4)
        why = "4 GiB" if bound == _DEFAULT else f"a quarter of the {in_bytes(free)} that are free"
        logger.info("pictures already cut: kept in up to %s (%s; mm_processor_cache_gb sets it)", in_bytes(bound), why)
        return cls(bound)

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._pictures: OrderedDict[bytes, CutPicture] = OrderedDict()  # the longest unused first
        self._bytes = self._queries = self._hits = 0

    @property
    def num_bytes(self) -> int:
        return self._bytes

    @property
    def counts(self) -> CacheCounts:
        with self._lock:
            return CacheCounts(self._queries, self._hits)

    def clear(self) -> None:
        """Forget all pictures; the counts go on."""
        with self._lock:
            self._pictures.clear()
            self._bytes = 0

    def find(self, digest: bytes) -> CutPicture | None:
        with self._lock:
            self._queries += 1
            picture = self._pictures.get(digest)
            if picture is not None:
                self._hits += 1
                self._pictures.move_to_end(digest)
            return picture

    def keep(self, digest: bytes, picture: CutPicture) -> None:
        """Others go for it, the longest unused first; one that is larger than all there is room for is not kept."""
        if picture.num_bytes > self.max_bytes:
            return
        with self._lock:
            self._forget(digest)  # two threads may have cut the same picture
            while self._bytes + picture.num_bytes > self.max_bytes:
                self._forget(next(iter(self._pictures)))
            self._pictures[digest] = picture
            self._bytes += picture.num_bytes

    def _forget(self, digest: bytes) -> None:
        picture = self._pictures.pop(digest, None)
        self._bytes -= picture.num_bytes if picture else 0


def picture_digest(image: Image.Image, tiling: Tiling, exif_orientation: bool) -> bytes:
    """32 bytes of BLAKE2b over a loaded picture, mode and palette included, and over how it will be cut."""
    turn = orientation(image) if exif_orientation else None
    palette = bytes(image.getpalette(None) or ()) if image.palette else b""
    how = (image.mode, image.size, image.info.get("transparency"), turn, palette, tiling)
    digest = hashlib.blake2b(repr(how).encode(), digest_size=32)
    digest.update(image.tobytes())
    return digest.digest()
