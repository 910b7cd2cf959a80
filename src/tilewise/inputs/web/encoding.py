"""Bodies that come compressed although they were asked for as they are, unpacked piece by piece."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

from tilewise.errors import InvalidMedia

_PIECE = 1 << 16  # bytes that are unpacked at a time, so that the limits have a say in between
_MOST_FILES = 1000  # that make one; each costs a copy of what follows
_GZIP, _RAW = zlib.MAX_WBITS | 32, -zlib.MAX_WBITS
_PLAIN, _PACKED = ("", "identity"), ("gzip", "x-gzip", "deflate")


def unpacked(chunks: Iterable[bytes], encoding: str, name: str) -> Iterator[bytes]:
    """A body without its Content-Encoding (RFC 9110, section 8.4.1), in pieces of at most 64 KiB if it has one.

    Pieces may be empty, one at least for each chunk. Raises InvalidMedia for another encoding, and for what is damaged
    or cut short.
    """
    encoding = encoding.strip().lower()
    if encoding in _PLAIN:
        return iter(chunks)
    if encoding not in _PACKED:
        raise InvalidMedia(
            f"{name} came in the Content-Encoding {encoding[:40]!a}, though it was asked for as it is; gzip and "
            "deflate are read: let the host send the file as it is, or send it as a data URL."
        )
    return _inflated(chunks, encoding, name)


def _inflated(chunks: Iterable[bytes], encoding: str, name: str) -> Iterator[bytes]:
    stream, begun, files = None, b"", 1
    try:
        for chunk in chunks:
            if stream is None:  # two bytes tell whether deflate has its zlib frame, which some hosts leave out
                begun += chunk
                if len(begun) < 2:
                    continue
                framed = encoding != "deflate" or (begun[0] & 15 == 8 and int.from_bytes(begun[:2], "big") % 31 == 0)
                stream, chunk = zlib.decompressobj(_GZIP if framed else _RAW), begun
            yield b""
            while chunk:
                yield stream.decompress(chunk, _PIECE)
                chunk = stream.unconsumed_tail
                if stream.eof and stream.unused_data[:2] == b"\x1f\x8b":  # several files of gzip make one
                    chunk, stream, files = stream.unused_data, zlib.decompressobj(_GZIP), files + 1
                    if files > _MOST_FILES:
                        raise zlib.error
                elif len(stream.unused_data) > 1:  # something was hung on behind
                    return
        while stream is not None and not stream.eof and (piece := stream.decompress(b"", _PIECE)):
            yield piece
    except zlib.error:
        raise InvalidMedia(f"{name} came as {encoding} that is damaged: send the file as it is.") from None
    if stream is None or not stream.eof:
        raise InvalidMedia(f"{name} came as {encoding} that is cut short: send the whole file.")
