"""Lines of the input, one at a time. One that is too long is never held whole, but counted and named like any other."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

_PIECE = 2**20  # bytes at a time of what is too long


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the input; `number` counts from 1."""

    number: int
    data: bytes | None
    """Without its end; None if it is longer than the limit."""
    size: int
    digest: int
    """64 bits over the whole line, however long."""

    @property
    def id(self) -> str:
        """Of its result: which line it answers, and what that line was."""
        return f"batch_req_{self.number}_{self.digest:016x}"


def read_lines(path: Path, limit: int) -> Iterator[Line]:
    """`limit` is the most bytes of a line that are held."""
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = _read_line(file, number, limit)
            if line is None:
                return
            yield line


def _read_line(file: BinaryIO, number: int, limit: int) -> Line | None:
    first = piece = file.readline(limit + 1)
    digest, size = blake2b(digest_size=8), 0
    while piece:
        content = piece.removesuffix(b"\n")
        digest.update(content)
        size += len(content)
        if content is not piece:
            break
        piece = file.readline(_PIECE)
    if not first:
        return None
    data = first.removesuffix(b"\n") if size <= limit else None
    return Line(number, data, size, int.from_bytes(digest.digest()))


def survey(path: Path) -> array[int]:
    """The digest of every line: 8 bytes each, whatever the lines hold."""
    return array("Q", (line.digest for line in read_lines(path, _PIECE)))
