"""Fetching media: http(s), data and file URLs, closed by default.

Only public addresses are reached: a host name is resolved first, every address is checked, and the connection goes
to a checked address, so that a name cannot change its mind in between. Every redirect goes through the same door.
Local files are read only below `allowed_local_media_path`. `inputs/web/` does what concerns the web.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from tilewise.errors import InvalidMedia
from tilewise.inputs.media_budget import Deadline, MediaBudget
from tilewise.inputs.media_limits import MediaLimits
from tilewise.inputs.web.address import MAX_URL, short
from tilewise.inputs.web.download import Download, check_size

Kind = Literal["image", "video"]
_FRAME_LIST = "data:video/jpeg;base64,"
"""Behind it comes a list of frames: `<picture>,<picture>,...`"""


@dataclass(frozen=True, slots=True)
class MediaFiles:
    """What is behind a URL: one file, or the frames of a video, one file each."""

    files: tuple[bytes, ...]
    is_list: bool = False

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self.files))


@dataclass(frozen=True, slots=True)
class MediaAccess:
    """What may be fetched, and how much of it."""

    allowed_local_media_path: Path | None = None
    allowed_media_domains: tuple[str, ...] | None = None
    """Exact host names; None = any public host."""
    allow_private_addresses: bool = False
    max_redirects: int = 3
    limits: MediaLimits = field(default_factory=MediaLimits)

    def fetch(self, url: str, kind: Kind = "image", budget: MediaBudget | None = None) -> bytes:
        """The bytes behind a URL. Raises InvalidMedia for what is refused, missing, too large or too slow.

        `budget` is that of a request; without one, the file is a request of its own.
        """
        budget = budget or MediaBudget(self.limits)
        budget.check()
        # Not by urllib, which remembers what it has taken apart: data URLs are whole files.
        scheme = url[:6].partition(":")[0].lower() if ":" in url[:6] else ""
        if scheme in ("http", "https"):
            return self._download(url, kind, budget)
        if scheme == "data":
            return self._decode_data_url(url, budget)
        if scheme == "file":
            return self._read_local(url, budget)
        raise InvalidMedia(f"{short(url)}: The URL must be either a HTTP, data or file URL.")

    def fetch_files(self, url: str, kind: Kind, budget: MediaBudget) -> MediaFiles:
        """As `fetch`, for videos that may be lists of frames as well."""
        if kind == "video" and url[: len(_FRAME_LIST)].lower() == _FRAME_LIST:
            return MediaFiles(self._frame_list(url, budget), is_list=True)
        return MediaFiles((self.fetch(url, kind, budget),))

    def _frame_list(self, url: str, budget: MediaBudget) -> tuple[bytes, ...]:
        """Raises InvalidMedia if there are too many, before any is decoded."""
        head, _, body = url.partition(",")
        count, most = body.count(",") + 1, budget.limits.chosen_frames
        if count > most:
            raise InvalidMedia(
                f"A video has {count} frames, the limit is {most} "
                f"({MediaLimits.variable('chosen_frames')}): send fewer."
            )
        return tuple(self._decode_data_url(f"{head},{frame}", budget) for frame in body.split(","))

    def _download(self, url: str, kind: Kind, budget: MediaBudget) -> bytes:
        limit = "image_seconds" if kind == "image" else "video_seconds"
        deadline = Deadline(budget, limit, f"Fetching {short(url)}", "use a faster host or a smaller file")
        download = Download(self.allowed_media_domains, self.allow_private_addresses, self.max_redirects)
        return download.fetch(url, budget, deadline)

    def _decode_data_url(self, url: str, budget: MediaBudget) -> bytes:
        head, _, body = url.partition(",")
        if not head.endswith(";base64"):
            raise InvalidMedia("Only base64 data URLs are supported for now.")
        size = len(body) * 3 // 4
        check_size("the data URL", size, budget.limits.file_bytes)
        budget.take_bytes(size)
        try:
            return base64.b64decode(body, validate=True)
        except ValueError as error:
            raise InvalidMedia(f"{short(url)}: not valid base64 ({error}).") from None

    def _read_local(self, url: str, budget: MediaBudget) -> bytes:
        root = self.allowed_local_media_path
        if root is None:
            raise InvalidMedia("Cannot load local files without `--allowed-local-media-path`.")
        path = Path(_local_path(url))
        # Resolve before asking whether the file exists: what lies outside stays unknown.
        try:
            resolved = path.resolve()
        except (RuntimeError, ValueError):  # a circle of links, a byte that no name has
            raise InvalidMedia(f"{short(str(path))!r}: no such file.") from None
        except OSError as error:
            raise InvalidMedia(f"{short(str(path))!r} cannot be read ({error.strerror}).") from None
        if not resolved.is_relative_to(root.resolve()):
            raise InvalidMedia(f"The file path {path} must be a subpath of `--allowed-local-media-path` {root}.")
        try:
            if not resolved.is_file():
                raise InvalidMedia(f"{path}: no such file.")
            size = resolved.stat().st_size
            check_size(str(path), size, budget.limits.file_bytes)
            budget.take_bytes(size)
            return resolved.read_bytes()
        except OSError as error:
            raise InvalidMedia(f"{short(str(path))!r} cannot be read ({error.strerror}).") from None


def _local_path(url: str) -> str:
    if len(url) > MAX_URL:
        raise InvalidMedia(f"A URL of {len(url)} characters is too long, the limit is {MAX_URL}.")
    try:
        return unquote(urlsplit(url).path)
    except ValueError as error:
        raise InvalidMedia(f"{short(url)!r} is not a valid URL ({error}).") from None
