"""Fetching media: http(s), data and file URLs, closed by default.

Only public addresses are reached: a host name is resolved first, every address is checked, and the connection goes
to a checked address, so that a name cannot change its mind in between. Every redirect is checked in the same way.
Local files are read only below `allowed_local_media_path`.

Data URLs (RFC 2397) are read as leniently as clients write them; each remaining fault is named. What is read: any case
of scheme, type and `base64`; parameters; data without base64; in base64, percent-encoding, white space and line breaks,
missing padding, and the alphabet of RFC 4648 section 5 (- and _). A URL as it should be is decoded in one go; any other
is first brought to that form, in copies whose number is fixed.
"""

from __future__ import annotations

import base64
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from tilewise.errors import InvalidMedia
from tilewise.inputs.media.connection import Proxies
from tilewise.inputs.media.download import Download, check_size
from tilewise.inputs.media.hosts import MAX_URL, AllowedHosts, short
from tilewise.inputs.media.limits import Deadline, MediaBudget, MediaLimits

Kind = Literal["image", "video"]
_FRAME_LIST = "video/jpeg"
"""Type of a data URL that holds a list of frames: `<picture>,<picture>,...`"""
_BUCKETS = ("s3", "s3a", "s3n", "gs", "gcs", "az", "abfs", "abfss", "wasb", "wasbs", "oss", "cos", "obs", "hdfs", "hf")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,19}):")
_WHITE = b" \t\r\n\f\v"
_SAFE = bytes.maketrans(b"-_", b"+/")
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_FAULT = re.compile(rb"[^A-Za-z0-9+/\-_=% \t\r\n\f\v]|%(?![0-9A-Fa-f]{2})")
_PIECE = 2**20
"""Characters that are percent-decoded at a time: decoding takes many times their size in memory."""
_MOST_TEXT = 4
"""Most characters of a URL for each byte of a file: base64 takes 4 for 3, and percent-encoding makes 3 of each."""
_MOST_HEAD = 1024


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
        try:
            # Resolve before asking whether the file exists: what lies outside stays unknown.
            resolved = path.resolve()
            if not resolved.is_relative_to(root.resolve()):
                raise InvalidMedia(f"The file path {path} must be a subpath of `--allowed-local-media-path` {root}.")
            if not resolved.is_file():
                raise InvalidMedia(f"{path}: no such file." if not resolved.exists() else f"{path} is no regular file.")
            size = resolved.stat().st_size
            check_size(str(path), size, budget.limits.file_bytes)
            budget.take_bytes(size)
            return resolved.read_bytes()
        except InvalidMedia:
            raise
        except OSError as error:
            raise InvalidMedia(f"{short(str(path))!r} cannot be read ({error.strerror}).") from None
        except (RuntimeError, ValueError):  # a circle of links, a byte that no name has
            raise InvalidMedia(f"{short(str(path))!r}: no such file.") from None


def _scheme(url: str) -> str:
    """Return a URL's scheme, without urllib, which remembers what it has taken apart: data URLs are whole files."""
    found = _SCHEME.match(url.lstrip()[:21])
    return found[1].lower() if found else ""


def _instead_of(scheme: str, url: str) -> str:
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


@dataclass(frozen=True, slots=True)
class DataUrl:
    """A data URL taken apart, not yet decoded."""

    media_type: str
    """Media type in lower case, without parameters; "" if there is none."""
    is_base64: bool
    body: str

    @classmethod
    def of(cls, url: str) -> DataUrl:
        """Take a URL apart. Raises InvalidMedia unless there is a comma between type and data."""
        head, comma, body = url.partition(",")
        if not comma or len(head) > _MOST_HEAD:
            raise InvalidMedia(
                f"{head[:60]!r} is no data URL: it needs a comma between its type and its data, as in "
                "data:image/png;base64,iVBOR..."
            )
        media_type, *parameters = (word.strip().lower() for word in head[len("data:") :].split(";"))
        return cls(media_type, "base64" in parameters, body)

    def decode(self, budget: MediaBudget) -> bytes:
        """Return the file. Raises InvalidMedia for what is no base64, and for more than its request has left."""
        return decode_base64(self.body, budget) if self.is_base64 else self._plain(budget)

    def _plain(self, budget: MediaBudget) -> bytes:
        _check_text(self.body, budget)
        data = _percent_decoded(self.body.encode("utf-8", "surrogatepass"), budget)
        _take(len(data), budget)
        return data


def decode_base64(body: str, budget: MediaBudget, name: str = "the data URL") -> bytes:
    """Decode base64 alone, as `DataUrl.decode` does; `name` is what errors call it."""
    _check_text(body, budget, name)
    try:
        text = _ascii(body)
        try:
            data = base64.b64decode(text, validate=True)
        except ValueError:
            data = _decode_leniently(text, budget)
    except _NoBase64 as error:
        what = "A data URL" if name == "the data URL" else name
        raise InvalidMedia(f"{what} is not valid base64: {error}. Send the file's bytes encoded anew.") from None
    _take(len(data), budget, name)
    return data


class _NoBase64(Exception):
    """A fault in base64 data; its text names it."""


def _take(size: int, budget: MediaBudget, name: str = "the data URL") -> None:
    check_size(name, size, budget.limits.file_bytes)
    budget.take_bytes(size)


def _check_text(body: str, budget: MediaBudget, name: str = "the data URL") -> None:
    """Raise InvalidMedia, before anything is copied, for text that is too long however it is encoded."""
    check_size(name, len(body) // _MOST_TEXT, budget.limits.file_bytes)


def _ascii(body: str) -> bytes:
    try:
        return body.encode("ascii")
    except UnicodeEncodeError as error:
        raise _NoBase64(f"character {error.start + 1} of its data is {body[error.start]!a}") from None


def _decode_leniently(text: bytes, budget: MediaBudget) -> bytes:
    fault = _FAULT.search(text)
    if fault is not None:
        raise _NoBase64(f"character {fault.start() + 1} of its data is {chr(text[fault.start()])!r}")
    clean = _percent_decoded(text, budget).translate(_SAFE, delete=_WHITE)
    letters = clean.rstrip(b"=")
    if len(clean) - len(letters) > 2:
        raise _NoBase64(f"its data end with {len(clean) - len(letters)} padding characters (=), at most 2 can be")
    others = letters.translate(None, delete=_ALPHABET)
    if others:
        where = letters.index(others[:1]) + 1
        what = "padding (=) stands in the middle, at" if others[:1] == b"=" else f"{chr(others[0])!r} is"
        raise _NoBase64(f"{what} character {where} of its data, white space not counted")
    if len(letters) % 4 == 1:
        spaces = "; a + may have become a space" if b" " in text else ""
        raise _NoBase64(f"its data have {len(letters)} characters, one too many or some too few{spaces}")
    return base64.b64decode(letters + b"=" * (-len(letters) % 4))


def _percent_decoded(text: bytes, budget: MediaBudget) -> bytes:
    """Decode percent-encoding; a % that no two hex digits follow is left as it is."""
    if b"%" not in text:
        return text
    decoded, place = bytearray(), 0
    while place < len(text):
        budget.check()
        end = place + _PIECE
        if b"%" in text[end - 2 : end]:  # no piece ends within an escape
            end = text.index(b"%", end - 2)
        decoded += unquote_to_bytes(text[place:end])
        place = end
    return bytes(decoded)
