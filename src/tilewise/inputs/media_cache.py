"""Pictures already cut, known again by their pixels, and media under names that callers chose.

The key of a cut picture is a digest of all that its tiles depend on. Several threads may prepare requests at once.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from PIL import Image

from tilewise.errors import InvalidMedia, InvalidRequest
from tilewise.host import available_memory
from tilewise.inputs.embeddings import EncodedPicture
from tilewise.inputs.media import Kind, MediaFiles
from tilewise.inputs.media_limits import MediaLimits
from tilewise.inputs.orientation import orientation
from tilewise.types import AnyTile, Grid
from tilewise.units import GIB, in_bytes

if TYPE_CHECKING:
    from tilewise.inputs.images import Tiling


logger = logging.getLogger("tilewise")
_DEFAULT = 4 * GIB


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


class Sized(Protocol):
    @property
    def num_bytes(self) -> int: ...


Key = TypeVar("Key")
Value = TypeVar("Value", bound=Sized)


class RecentlyUsed(Generic[Key, Value]):
    """The most recently used values, up to so many bytes. Threads may share an instance."""

    def __init__(self, max_bytes: int) -> None:
        self.num_bytes = 0
        self._max_bytes = max_bytes
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

    def keep(self, key: Key, value: Value) -> None:
        """Put a value in place of what had its key; one of more than `max_bytes` only takes that out."""
        with self._lock:
            self._forget(key)
            if value.num_bytes > self._max_bytes:
                return
            while self.num_bytes + value.num_bytes > self._max_bytes:
                self._forget(next(iter(self._values)))
            self._values[key] = value
            self.num_bytes += value.num_bytes

    def _forget(self, key: Key) -> None:
        value = self._values.pop(key, None)
        self.num_bytes -= value.num_bytes if value is not None else 0


class MediaCache:
    """The most recently used pictures, up to so many bytes of tiles; 0 = none, and no picture is looked up."""

    @classmethod
    def of(cls, gigabytes: float | None) -> MediaCache:
        """Make one of so many GiB; None = 4, or a quarter of what machine or container has free now, if less."""
        if gigabytes is not None:
            return cls(int(gigabytes * GIB))
        free = available_memory().free
        bound = min(_DEFAULT, free // 4)
        why = "4 GiB" if bound == _DEFAULT else f"a quarter of the {in_bytes(free)} that are free"
        logger.info("pictures already cut: kept in up to %s (%s; mm_processor_cache_gb sets it)", in_bytes(bound), why)
        return cls(bound)

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._pictures = RecentlyUsed[bytes, CutPicture](max_bytes)

    @property
    def num_bytes(self) -> int:
        return self._pictures.num_bytes

    @property
    def counts(self) -> CacheCounts:
        return self._pictures.counts

    def clear(self) -> None:
        """Forget all pictures; the counts go on."""
        self._pictures.clear()

    def find(self, digest: bytes) -> CutPicture | None:
        return self._pictures.find(digest)

    def keep(self, digest: bytes, picture: CutPicture) -> None:
        """Keep a picture in place of the longest unused ones; one of more than `max_bytes` is not kept."""
        self._pictures.keep(digest, picture)


def picture_digest(image: Image.Image, tiling: Tiling, exif_orientation: bool) -> bytes:
    """Return 32 bytes of BLAKE2b over a loaded picture, mode and palette included, and over how it will be cut."""
    turn = orientation(image) if exif_orientation else None
    palette = bytes(image.getpalette(None) or ()) if image.palette else b""
    how = (image.mode, image.size, image.info.get("transparency"), turn, palette, tiling)
    digest = hashlib.blake2b(repr(how).encode(), digest_size=32)
    digest.update(image.tobytes())
    return digest.digest()


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
    nobody meets the media of others under it. Threads may share an instance.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._media = RecentlyUsed[_Key, KeptMedia](max_bytes)

    def find(self, scope: str | None, kind: Kind, uuid: str) -> KeptMedia:
        """Return what is kept under a name; scope None has nothing. Raises InvalidMedia if there is none."""
        files = None if scope is None else self._media.find((scope, kind, uuid))
        if files is None:
            raise InvalidMedia(f"{self._why_missing(scope, kind, uuid)}: send its content again.")
        return files

    def keep(self, scope: str | None, kind: Kind, uuid: str, files: KeptMedia) -> None:
        """Keep media in place of what had this name; media of more than `max_bytes` are not kept."""
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
    """Return a part's `uuid`, or None if it has none. Raises InvalidRequest."""
    if uuid is None:
        return None
    if not isinstance(uuid, str) or not 1 <= len(uuid) <= MAX_UUID:
        raise InvalidRequest(f"{where}: uuid must be a text of 1 to {MAX_UUID} characters, got {uuid!r:.80}.")
    return uuid
