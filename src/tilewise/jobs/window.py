"""What is in flight: how much may be, and in which order its results come out."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator

from tilewise.jobs.result import Result
from tilewise.jobs.source import Line

BYTES = 256 * 2**20
"""Most bytes of lines in flight; one line alone may have more."""


class Window:
    """A line is in flight from `enter` until its result comes out of `leave`.

    In order, results wait for those of earlier lines, so no more of them wait than lines may be in flight.
    """

    def __init__(self, most_lines: int, in_order: bool, most_bytes: int = BYTES) -> None:
        self._most_lines, self._most_bytes, self._in_order = most_lines, most_bytes, in_order
        self._sizes: dict[int, int] = {}
        self._bytes = 0
        self._order: deque[int] = deque()
        self._waiting: dict[int, Result] = {}
        self._freed = asyncio.Event()

    async def enter(self, line: Line) -> None:
        """Returns as soon as there is room. One caller at a time."""
        size = 0 if line.data is None else line.size
        while self._sizes and (len(self._sizes) >= self._most_lines or self._bytes + size > self._most_bytes):
            self._freed.clear()
            await self._freed.wait()
        self._sizes[line.number] = size
        self._bytes += size
        if self._in_order:
            self._order.append(line.number)

    def leave(self, result: Result) -> Iterator[Result]:
        """The results whose turn has come."""
        if not self._in_order:
            self._free(result.number)
            yield result
            return
        self._waiting[result.number] = result
        while self._order and self._order[0] in self._waiting:
            number = self._order.popleft()
            self._free(number)
            yield self._waiting.pop(number)

    def _free(self, number: int) -> None:
        self._bytes -= self._sizes.pop(number)
        self._freed.set()
