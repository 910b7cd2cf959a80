"""What is in flight: how much may be, and in which order its results come out."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator

from tilewise.jobs.result import Result
from tilewise.jobs.source import Line

BYTES = 256 * 2**20
"""Most bytes of lines in flight, and about as many of results that wait; one line alone may have more."""


_AHEAD = 16
"""Results that wait for an earlier line's, for each line that may be in flight: a long answer holds up no others."""


class Window:
    """A line is in flight from `enter` until its result is given to `leave`.

    In order, results wait there for those of earlier lines: so many and so large that the engine goes on meanwhile.
    """

    def __init__(self, most_lines: int, in_order: bool, most_bytes: int = BYTES) -> None:
        self._most_lines, self._most_bytes, self._in_order = most_lines, most_bytes, in_order
        self._sizes: dict[int, int] = {}
        self._bytes = 0
        self._order: deque[int] = deque()
        self._waiting: dict[int, Result] = {}
        self._waiting_bytes = 0
        self._freed = asyncio.Event()

    async def enter(self, line: Line) -> None:
        """Returns as soon as there is room. One caller at a time."""
        size = 0 if line.data is None else line.size
        while self._is_full(size):
            self._freed.clear()
            await self._freed.wait()
        self._sizes[line.number] = size
        self._bytes += size
        if self._in_order:
            self._order.append(line.number)

    def leave(self, result: Result) -> Iterator[Result]:
        """The results whose turn has come."""
        self._bytes -= self._sizes.pop(result.number)
        if not self._in_order:
            self._freed.set()
            yield result
            return
        self._waiting[result.number] = result
        self._waiting_bytes += len(result.line)
        while self._order and self._order[0] in self._waiting:
            ready = self._waiting.pop(self._order.popleft())
            self._waiting_bytes -= len(ready.line)
            yield ready
        self._freed.set()

    def _is_full(self, size: int) -> bool:
        if not self._sizes:
            return False
        ahead = len(self._waiting) >= _AHEAD * self._most_lines or self._waiting_bytes > self._most_bytes
        return ahead or len(self._sizes) >= self._most_lines or self._bytes + size > self._most_bytes
