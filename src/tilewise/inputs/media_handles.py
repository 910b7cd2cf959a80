"""Media under names that callers chose: send a picture once with a `uuid`, and later the `uuid` alone.

Files are kept, not pixels: they are small, and how a picture is cut may differ from request to request. What came
decoded, from Python, is kept so, and so are rows of pictures that came encoded. A name belongs to a scope, so that
nobody meets the media of others under it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from PIL import Image

from tilewise.errors import InvalidMedia, InvalidRequest
from tilewise.inputs.embeddings import EncodedPicture
from tilewise.inputs.media import Kind, MediaFiles
from tilewise.inputs.media_limits import MediaLimits

MAX_UUID = 256
"""Characters."""
_Key = tuple[str, Kind, str]


@dataclass(frozen=True, slots=True)
class DecodedMedia:
    """A picture, or the frames of a video, as a caller's program had them."""

    images: tuple[Image.Image, ...]

    @property
    def num_bytes(self) -> int:
        return sum(image.width * image.height * len(image.getbands()) for image in self.images)


KeptMedia = MediaFiles | DecodedMedia | EncodedPicture


class MediaHandles:
    """The most recently used media, up to so many bytes of files; 0 = none. Threads may share it."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._media: OrderedDict[_Key, KeptMedia] = OrderedDict()  # the longest unused first
        self._bytes = 0

    def find(self, scope: str | None, kind: Kind, uuid: str) -> KeptMedia:
        """Raises InvalidMedia if nothing is kept under this name. Scope None has none."""
        with self._lock:
            files = None if scope is None else self._media.get((scope, kind, uuid))
            if scope is None or files is None:
                raise InvalidMedia(f"{self._why_missing(scope, kind, uuid)}: send its content again.")
            self._media.move_to_end((scope, kind, uuid))
            return files

    def keep(self, scope: str | None, kind: Kind, uuid: str, files: KeptMedia) -> None:
        """In place of what was kept under this name; what is larger than all there is room for is not kept."""
        if scope is None:
            return
        with self._lock:
            self._forget((scope, kind, uuid))
            if files.num_bytes > self.max_bytes:
                return
            while self._bytes + files.num_bytes > self.max_bytes:
                self._forget(next(iter(self._media)))
            self._media[scope, kind, uuid] = files
            self._bytes += files.num_bytes

    def _forget(self, key: _Key) -> None:
        files = self._media.pop(key, None)
        self._bytes -= files.num_bytes if files else 0

    def _why_missing(self, scope: str | None, kind: Kind, uuid: str) -> str:
        if scope is None or not self.max_bytes:
            return f"uuid {uuid!r} cannot stand for its {kind}, as nothing is kept here"
        return (
            f"uuid {uuid!r} names no {kind} that is kept (any longer; the limit is {self.max_bytes} bytes of files, "
            f"raise {MediaLimits.variable('handle_bytes')} for more)"
        )


def check_uuid(uuid: object, where: str) -> str | None:
    """A part's `uuid`, or None if it has none. Raises InvalidRequest."""
    if uuid is None:
        return None
    if not isinstance(uuid, str) or not 1 <= len(uuid) <= MAX_UUID:
        raise InvalidRequest(f"{where}: uuid must be a text of 1 to {MAX_UUID} characters, got {uuid!r:.80}.")
    return uuid
