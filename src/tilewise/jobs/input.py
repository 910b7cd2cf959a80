"""The input of a run: its lines one at a time, the request in each, and which custom_id stood in which of them.

Blank lines do not count: they are passed over wherever they stand, and so is a byte order mark.
"""

from __future__ import annotations

import itertools
import json
from array import array
from codecs import BOM_UTF8
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from tilewise.errors import did_you_mean

_PIECE = 2**20  # bytes that are read at a time of a line that is too long


@dataclass(frozen=True, slots=True)
class InputLine:
    """A line of the input that is not blank."""

    number: int
    """Number among the lines that are not blank, from 1."""
    data: bytes | None
    """Bytes of the line without its end; None if it is longer than the limit."""
    size: int
    digest: int
    """64-bit digest of the whole line, however long."""
    place: int
    """Number of the line in the file, from 1, blank lines counted, as an editor shows it."""

    @property
    def id(self) -> str:
        """Id of the line's result, which says which line it answers, and what that line was."""
        return result_id(self.number, self.digest)


def result_id(number: int, digest: int) -> str:
    return f"batch_req_{number}_{digest:016x}"


def read_lines(path: Path, limit: int) -> Iterator[InputLine]:
    """Yield the lines that are not blank; `limit` is the most bytes of a line that are held."""
    with path.open("rb") as file:
        number = 1
        for place in itertools.count(1):
            first = file.readline(limit + 1)
            if not first:
                return
            size, digest, blank = _rest(file, first, place)
            if not blank:
                data = first.removesuffix(b"\n") if size <= limit else None
                yield InputLine(number, data, size, digest, place)
                number += 1


def _rest(file: BinaryIO, piece: bytes, place: int) -> tuple[int, int, bool]:
    """Read a line that begins with `piece` to its end; return its size and digest, and whether it is blank."""
    digest, size = blake2b(digest_size=8), 0
    blank = not (piece.removeprefix(BOM_UTF8) if place == 1 else piece).strip()
    while piece:
        content = piece.removesuffix(b"\n")
        digest.update(content)
        size += len(content)
        if len(content) < len(piece):
            break
        piece = file.readline(_PIECE)
        blank = blank and not piece.strip()
    return size, int.from_bytes(digest.digest()), blank


def line_digests(path: Path) -> array[int]:
    """Return the digest of every line that is not blank: 8 bytes each, whatever the lines hold."""
    return array("Q", (line.digest for line in read_lines(path, _PIECE)))


_KEYS = ("custom_id", "method", "url", "body")


@dataclass(frozen=True, slots=True)
class Task:
    """A request of the input, as it is sent to the server, and the name by which its author knows it."""

    custom_id: str
    path: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Fault:
    """A reason why a line is not asked."""

    custom_id: str | None
    code: str
    message: str


def read_task(line: InputLine, paths: Collection[str], limit: int) -> Task | Fault:
    """Read a line of the input. `paths` are the routes that may be asked, `limit` is the most bytes of a line."""
    if line.data is None:
        shorter = "send smaller pictures, or URLs instead, or raise --max-body-mb"
        return Fault(
            None, "line_too_long", f"Line {line.place} has {line.size} bytes, the limit is {limit}: {shorter}."
        )
    try:
        found = json.loads(line.data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return Fault(None, "invalid_json_line", f"Line {line.place} is not valid JSON: {error}.")
    if not isinstance(found, dict):
        return Fault(None, "invalid_json_line", f"Line {line.place} must be a JSON object with {', '.join(_KEYS)}.")
    return _task(line.place, found, paths)


def _task(number: int, found: dict[str, Any], paths: Collection[str]) -> Task | Fault:
    custom_id = found.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        return Fault(None, "invalid_custom_id", _must_be(number, found, "custom_id", "a text that is not empty"))
    if found.get("method") != "POST":
        return Fault(custom_id, "invalid_method", _must_be(number, found, "method", '"POST"'))
    url, body = found.get("url"), found.get("body")
    if url not in paths:
        near = did_you_mean(str(url), paths)
        return Fault(custom_id, "invalid_url", _must_be(number, found, "url", f"one of {', '.join(paths)}") + near)
    if not isinstance(body, dict):
        return Fault(custom_id, "invalid_body", _must_be(number, found, "body", "an object"))
    if body.get("stream") not in (None, False):
        return Fault(custom_id, "stream_not_possible", _must_be(number, body, "stream", "false: a file has no stream"))
    return Task(custom_id, str(url), json.dumps(body).encode())


def _must_be(number: int, found: dict[str, Any], key: str, wanted: str) -> str:
    got = f"got {found[key]!r:.80}" if key in found else f"it is missing.{did_you_mean(key, found)}"
    return f"Line {number}: {key} must be {wanted}; {got.removesuffix('.')}."


_FIRST_SIZE = 1024


class CustomIds:
    """A hash table that says which line used a custom_id first, by the 64-bit digests of ids.

    Among a million ids, two different ones look alike with a chance of one in forty million.
    """

    def __init__(self) -> None:
        self._digests = array("Q")
        """uint64, the digest of each line's custom_id; 0 where a line has none, or repeats one."""
        self._table = array("I", bytes(4 * _FIRST_SIZE))
        """uint32, line numbers at the slots of their digests, or the next free ones; 0 = free, at least a third."""
        self._count = 0

    def first_use(self, custom_id: str, number: int) -> int | None:
        """Return the line that has a custom_id already; None if `number` is the first, which is remembered."""
        digest = _digest(custom_id)
        place = self._place(digest)
        if self._table[place]:
            return self._table[place]
        self._digests.frombytes(bytes(8 * (number - len(self._digests))))
        self._digests[number - 1] = digest
        self._table[place] = number
        self._count += 1
        if 3 * self._count > 2 * len(self._table):
            self._grow()
        return None

    def _place(self, digest: int) -> int:
        """Return the slot of a digest, or the free slot where it belongs."""
        size = len(self._table)
        place = digest % size
        while (number := self._table[place]) and self._digests[number - 1] != digest:
            place = (place + 1) % size
        return place

    def _grow(self) -> None:
        numbers = [number for number in self._table if number]
        self._table = array("I", bytes(8 * len(self._table)))
        for number in numbers:
            self._table[self._place(self._digests[number - 1])] = number


def _digest(custom_id: str) -> int:
    data = custom_id.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8).digest())
