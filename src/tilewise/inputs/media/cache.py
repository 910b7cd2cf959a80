"""Pictures already cut, known again by their pixels, and media under names that callers chose.

The key of a cut picture is a digest of all that its tiles depend on. Several threads may prepare requests at once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from PIL import Image

from tilewise.errors import InvalidField, InvalidMedia
from tilewise.host import cache_bytes
from tilewise.inputs.media.fetch import Kind, MediaFiles
from tilewise.inputs.media.images import orientation, to_rgb
from tilewise.inputs.media.limits import MediaLimits
from tilewise.inputs.media.tiling import (
    EncodedPicture,
    Tiling,
    choose_grid,
    content_digest,
    tile_digest,
    tile_image,
)
from tilewise.resize import Resize
from tilewise.types import AnyTile, Grid, Tile


@dataclass(frozen=True, slots=True)
class CutPicture:
    """A picture or frame that is cut into tiles, thumbnail last."""

    tiles: tuple[AnyTile, ...]
    grid: Grid
    size: tuple[int, int]
    """Width and height of the picture in pixels; zeros if it came encoded."""

    @property
    def num_bytes(self) -> int:
        return sum(tile.num_bytes for tile in self.tiles)


@dataclass(frozen=True, slots=True)
class CacheCounts:
    """The look-ups of a cache, and how many found a picture, since the start."""

    queries: int = 0
    hits: int = 0

    def __add__(self, other: CacheCounts) -> CacheCounts:
        return CacheCounts(self.queries + other.queries, self.hits + other.hits)


class Sized(Protocol):
    @property
    def num_bytes(self) -> int: ...


Key = TypeVar("Key")
Value = TypeVar("Value", bound=Sized)


class RecentlyUsed(Generic[Key, Value]):
    """The most recently used values, up to so many bytes. Threads may share an instance."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0
        self._lock = threading.Lock()
        self._values: OrderedDict[Key, Value] = OrderedDict()  # the longest unused first
        self._queries = self._hits = 0

    @property
    def counts(self) -> CacheCounts:
        with self._lock:
            return CacheCounts(self._queries, self._hits)

    def clear(self) -> None:
        """Forget all values; the counts go on."""
        with self._lock:
            self._values.clear()
            self.num_bytes = 0

    def find(self, key: Key) -> Value | None:
        with self._lock:
            self._queries += 1
            value = self._values.get(key)
            if value is not None:
                self._hits += 1
                self._values.move_to_end(key)
            return value

    def forget_oldest(self) -> bool:
        """Forget the value that was not used for longest; return False if there is none."""
        with self._lock:
            if self._values:
                self._forget(next(iter(self._values)))
                return True
            return False

    def keep(self, key: Key, value: Value) -> None:
        """Put a value in place of what had its key; one of more than `max_bytes` only takes that out."""
        with self._lock:
            self._forget(key)
            if value.num_bytes > self.max_bytes:
                return
            while self.num_bytes + value.num_bytes > self.max_bytes:
                self._forget(next(iter(self._values)))
            self._values[key] = value
            self.num_bytes += value.num_bytes

    def _forget(self, key: Key) -> None:
        value = self._values.pop(key, None)
        self.num_bytes -= value.num_bytes if value is not None else 0


class MediaCache(RecentlyUsed[bytes, CutPicture]):
    """The most recently used pictures, up to so many bytes of tiles; 0 = none, and no picture is looked up."""

    @classmethod
    def of(cls, gigabytes: float | None) -> MediaCache:
        """Make one of so many GiB; None = as many as `cache_bytes` says."""
        return cls(cache_bytes(gigabytes, "pictures already cut", "mm_processor_cache_gb"))

    def cut(self, image: Image.Image, tiling: Tiling, exif_orientation: bool, resize: Resize) -> CutPicture:
        """Return a loaded picture's tiles, cut now or kept from an earlier request."""
        if not self.max_bytes:
            return _cut(image, tiling, exif_orientation, resize)
        digest = picture_digest(image, tiling, exif_orientation)
        found = self.find(digest)
        if found is None:
            found = _cut(image, tiling, exif_orientation, resize)
            self.keep(digest, found)
        return found


def _cut(image: Image.Image, tiling: Tiling, exif_orientation: bool, resize: Resize) -> CutPicture:
    rgb = to_rgb(image, exif_orientation)
    pixels = tile_image(rgb, tiling, resize)
    pixels.setflags(write=False)  # requests may share them
    tiles = tuple(Tile(tile_digest(tile), tile) for tile in pixels)
    return CutPicture(tiles, choose_grid(rgb.width, rgb.height, tiling), rgb.size)


def picture_digest(image: Image.Image, tiling: Tiling, exif_orientation: bool) -> bytes:
    """Return 32 bytes of SHA-256 over a loaded picture, mode and palette included, and over how it will be cut."""
    turn = orientation(image) if exif_orientation else None
    palette = bytes(image.getpalette(None) or ()) if image.palette else b""
    how = (image.mode, image.size, image.info.get("transparency"), turn, palette, tiling)
    return content_digest("picture", how, image.tobytes(), 32)


MAX_UUID = 256
"""Most characters of a `uuid`."""
_Key = tuple[str, Kind, str]


@dataclass(frozen=True, slots=True)
class DecodedMedia:
    """A picture, or the frames of a video, as a caller's program had them."""

    images: tuple[Image.Image, ...]

    @property
    def num_bytes(self) -> int:
        return sum(image.width * image.height * len(image.getbands()) for image in self.images)


KeptMedia = MediaFiles | DecodedMedia | EncodedPicture


class MediaByUuid:
    """The most recently used media under the names that callers gave them, up to so many bytes of files; 0 = none.

    Files are kept, not pixels: they are small, and how a picture is cut may differ from request to request. What came
    decoded, from Python, is kept so, and so are rows of pictures that came encoded. A name belongs to a scope, so that
    nobody meets the media of others under it; scope None keeps and finds nothing. Threads may share an instance.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._media = RecentlyUsed[_Key, KeptMedia](max_bytes)

    def find(self, scope: str | None, kind: Kind, uuid: str) -> KeptMedia:
        """Return what is kept under a name. Raises InvalidMedia if there is nothing."""
        files = None if scope is None else self._media.find((scope, kind, uuid))
        if files is None:
            raise InvalidMedia(f"{self._why_missing(scope, kind, uuid)}: send its content again.")
        return files

    def keep(self, scope: str | None, kind: Kind, uuid: str, files: KeptMedia) -> None:
        if scope is not None:
            self._media.keep((scope, kind, uuid), files)

    def _why_missing(self, scope: str | None, kind: Kind, uuid: str) -> str:
        if scope is None or not self.max_bytes:
            return f"uuid {uuid!r} cannot stand for its {kind}, as nothing is kept here"
        return (
            f"uuid {uuid!r} names no {kind} that is kept (any longer; the limit is {self.max_bytes} bytes of files, "
            f"raise {MediaLimits.variable('handle_bytes')} for more)"
        )


def check_uuid(uuid: object, where: str) -> str | None:
    """Return a part's `uuid`, or None if it has none. Raises InvalidField, naming `where`."""
    if uuid is None:
        return None
    if not isinstance(uuid, str) or not 1 <= len(uuid) <= MAX_UUID:
        raise InvalidField(where, f"{where}: uuid must be a text of 1 to {MAX_UUID} characters, got {uuid!r:.80}.")
    return uuid
