"""Which custom_id stood in which line, in some 25 bytes a line."""

from __future__ import annotations

from array import array
from hashlib import blake2b

_FIRST_SIZE = 1024


class CustomIds:
    """A hash table of line numbers; what they are compared by are 64-bit digests.

    Among a million ids, two different ones look alike with a chance of one in forty million.
    """

    def __init__(self) -> None:
        self._digests = array("Q")
        """By line number; 0 where a line has no custom_id, or repeats one."""
        self._table = array("I", bytes(4 * _FIRST_SIZE))
        """Line numbers at the places that their digests say, or behind; 0 = free. Never fuller than two thirds."""
        self._count = 0

    def first_use(self, custom_id: str, number: int) -> int | None:
        """The line that has it already; None, and remembered, if this is the first."""
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
        """Where it is, or the free place where it belongs."""
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
