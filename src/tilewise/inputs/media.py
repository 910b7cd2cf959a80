"""Fetching media: http(s), data and file URLs, closed by default.

Only public addresses are reached: a host name is resolved first, every address is checked, and the connection goes
to a checked address, so that a name cannot change its mind in between. Every redirect is checked in the same way.
Local files are read only below `allowed_local_media_path`. `inputs/web/` does what concerns the web.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from tilewise.errors import InvalidMedia
from tilewise.inputs.data_url import DataUrl, decode_base64
from tilewise.inputs.media_limits import Deadline, MediaBudget, MediaLimits
from tilewise.inputs.web.address import MAX_URL, Proxies, short
from tilewise.inputs.web.download import Download, check_size
from tilewise.inputs.web.hosts import AllowedHosts

Kind = Literal["image", "video"]
_FRAME_LIST = "video/jpeg"
"""Type of a data URL that holds a list of frames: `<picture>,<picture>,...`"""
_BUCKETS = ("s3", "s3a", "s3n", "gs", "gcs", "az", "abfs", "abfss", "wasb", "wasbs", "oss", "cos", "obs", "hdfs", "hf")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,19}):")


@dataclass(frozen=True, slots=True)
class MediaFiles:
    """The content behind a URL: one file, or the frames of a video, one file each."""

    files: tuple[bytes, ...]
    is_list: bool = False

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self.files))


@dataclass(frozen=True, slots=True)
class MediaAccess:
    """A fetcher of media, with the rules for what may be fetched and how much of it."""

    allowed_local_media_path: Path | None = None
    allowed_media_domains: tuple[str, ...] | None = None
    """Host names, addresses and networks, as `AllowedHosts` reads them; None = any public host."""
    allow_private_addresses: bool = False
    max_redirects: int = 3
    limits: MediaLimits = field(default_factory=MediaLimits)
    proxies: Proxies | None = None
    """Proxies to fetch through; None = those that the environment names."""

    def fetch(self, url: str, kind: Kind = "image", budget: MediaBudget | None = None) -> bytes:
        """Return the bytes behind a URL. Raises InvalidMedia for what is refused, missing, too large or too slow.

        `budget` is that of a request; without one, the file is a request of its own.
        """
        budget = budget or MediaBudget(self.limits)
        budget.check()
        url = url.strip()
        scheme = _scheme(url)
        if scheme in ("http", "https"):
            return self._download(url, kind, budget)
        if scheme == "data":
            return DataUrl.of(url).decode(budget)
        if scheme == "file":
            return self._read_local(url, budget)
        raise InvalidMedia(f"{short(url)}: The URL must be either a HTTP, data or file URL{_instead_of(scheme, url)}.")

    def fetch_files(self, url: str, kind: Kind, budget: MediaBudget) -> MediaFiles:
        """Fetch what is behind a URL, as `fetch` does; a video may be a list of frames as well."""
        if kind == "video" and _scheme(url) == "data":
            data = DataUrl.of(url.strip())
            if data.media_type == _FRAME_LIST and data.is_base64:
                return MediaFiles(_listed_frames(data.body, budget), is_list=True)
        return MediaFiles((self.fetch(url, kind, budget),))

    def _download(self, url: str, kind: Kind, budget: MediaBudget) -> bytes:
        limit = "image_seconds" if kind == "image" else "video_seconds"
        deadline = Deadline(budget, limit, f"Fetching {short(url)}", "use a faster host or a smaller file")
        proxies = Proxies.of(os.environ) if self.proxies is None else self.proxies
        hosts = AllowedHosts.of(self.allowed_media_domains)
        download = Download(hosts, self.allow_private_addresses, self.max_redirects, proxies)
        return download.fetch(url, budget, deadline)

    def _read_local(self, url: str, budget: MediaBudget) -> bytes:
        root = self.allowed_local_media_path
        if root is None:
            raise InvalidMedia(
                "Cannot load local files without `--allowed-local-media-path`: name the folder there, or send the "
                "file as a data URL."
            )
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


def _scheme(url: str) -> str:
    """Return a URL's scheme, without urllib, which remembers what it has taken apart: data URLs are whole files."""
    found = _SCHEME.match(url.lstrip()[:21])
    return found[1].lower() if found else ""


def _instead_of(scheme: str, url: str) -> str:
    """Return an error's end: what to send in place of an address that is not fetched here."""
    if scheme in _BUCKETS:
        return f"; {scheme}:// names an object that only its owner's credentials open: send a presigned https URL of it"
    if scheme in ("ftp", "ftps", "sftp"):
        return f"; {scheme}:// is not fetched: put the file behind http or https, or send it as a data URL"
    if scheme == "blob":
        return "; blob: means something in one browser alone: send the file as a data URL"
    if not scheme and len(url) > 200:
        return "; this may be the base64 of a file: put data:image/png;base64, before it"
    return "" if scheme else "; this has no scheme: put https:// or file:// before it"


def _listed_frames(body: str, budget: MediaBudget) -> tuple[bytes, ...]:
    """Decode a list of frames. Raises InvalidMedia if there are too many, before any is decoded."""
    count, most = body.count(",") + 1, budget.limits.chosen_frames
    if count > most:
        raise InvalidMedia(
            f"A video has {count} frames, the limit is {most} ({MediaLimits.variable('chosen_frames')}): send fewer."
        )
    return tuple(decode_base64(frame, budget) for frame in body.split(","))


def _local_path(url: str) -> str:
    if len(url) > MAX_URL:
        raise InvalidMedia(f"A URL of {len(url)} characters is too long, the limit is {MAX_URL}.")
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidMedia(f"{short(url)!r} is not a valid URL ({error}).") from None
    if parts.netloc.lower() not in ("", "localhost"):  # RFC 8089, section 2
        raise InvalidMedia(
            f"{short(url)}: a file URL names a file of the server alone, got the host {short(parts.netloc)!r}: "
            "write file:///path."
        )
    return unquote(parts.path)
