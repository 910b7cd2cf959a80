"""Data URLs (RFC 2397), read as leniently as clients write them; each remaining fault is named.

What is read: any case of scheme, type and `base64`; parameters; data without base64; in base64, percent-encoding, white
space and line breaks, missing padding, and the alphabet of RFC 4648 section 5 (- and _). A URL as it should be is
decoded in one go; any other is first brought to that form, in copies whose number is fixed.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from tilewise.errors import InvalidMedia
from tilewise.inputs.media_limits import MediaBudget
from tilewise.inputs.web.download import check_size

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
