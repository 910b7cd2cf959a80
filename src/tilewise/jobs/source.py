"""Lines of the input, one at a time. One that is too long is never held whole, but counted and named like any other.

Blank lines are none: they are passed over wherever they stand, and so is a byte order mark.
"""

from __future__ import annotations

import itertools
from array import array
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

_PIECE = 2**20  # bytes at a time of what is too long


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the input."""

    number: int
    """Among those that are not blank, from 1."""
    data: bytes | None
    """Without its end; None if it is longer than the limit."""
    size: int
    digest: int
    """64 bits over the whole line, however long."""
    place: int
    """Its number in the file, from 1, blank lines counted, as an editor shows it."""

    @property
    def id(self) -> str:
        """Of its result: which line it answers, and what that line was."""
        return f"batch_req_{self.number}_{self.digest:016x}"


def read_lines(path: Path, limit: int) -> Iterator[Line]:
    """`limit` is the most bytes of a line that are held."""
    with path.open("rb") as file:
        number = 1
        for place in itertools.count(1):
            first = file.readline(limit + 1)
            if not first:
                return
            size, digest, blank = _rest(file, first, place)
            if not blank:
                data = first.removesuffix(b"\n") if size <= limit else None
                yield Line(number, data, size, digest, place)
                number += 1


def _rest(file: BinaryIO, piece: bytes, place: int) -> tuple[int, int, bool]:
    """Size and digest of a line that begins with `piece`, read to its end, and whether there is nothing in it."""
    digest, size = blake2b(digest_size=8), 0
    blank = not (piece.removeprefix(BOM_UTF8) if place == 1 else piece).strip()
    while piece:
        content = piece.removesuffix(b"\n")
        digest.update(content)
        size += len(content)
        if content is not piece:
            break
        piece = file.readline(_PIECE)
        blank = blank and not piece.strip()
    return size, int.from_bytes(digest.digest()), blank


def survey(path: Path) -> array[int]:
    """The digest of every line that is not blank: 8 bytes each, whatever the lines hold."""
    return array("Q", (line.digest for line in read_lines(path, _PIECE)))
