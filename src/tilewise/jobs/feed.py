"""The run itself: lines are read, those without a result are asked, again if need be, and results are written."""

from __future__ import annotations

import asyncio
from array import array
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilewise.jobs.input import CustomIds, Fault, InputLine, Task, read_task
from tilewise.jobs.output import BatchResult, OtherInput, Output

if TYPE_CHECKING:
    import httpx

BYTES = 256 * 2**20
"""Most bytes of lines in flight, and about as many of results that wait for others; one line alone may have more."""
_AHEAD = 16
"""Results that may wait for an earlier line's, for each line in flight, so that a long answer holds up no others."""


class InFlight:
    """A limit on the lines in flight, which also puts results in the order of the input if asked to.

    A line is in flight from `enter` until its result is given to `leave`. Results that have to be in order wait here
    for those of earlier lines, and may be so many and so large that the engine goes on meanwhile.
    """

    def __init__(self, most_lines: int, in_order: bool, most_bytes: int = BYTES) -> None:
        self._most_lines, self._most_bytes, self._in_order = most_lines, most_bytes, in_order
        self._sizes: dict[int, int] = {}
        self._bytes = 0
        self._order: deque[int] = deque()
        self._waiting: dict[int, BatchResult] = {}
        self._waiting_bytes = 0
        self._freed = asyncio.Event()

    async def enter(self, line: InputLine) -> None:
        """Wait until the line may be in flight. Only one caller may wait at a time."""
        size = 0 if line.data is None else line.size
        while self._is_full(size):
            self._freed.clear()
            await self._freed.wait()
        self._sizes[line.number] = size
        self._bytes += size
        if self._in_order:
            self._order.append(line.number)

    def leave(self, result: BatchResult) -> Iterator[BatchResult]:
        """Take a result, and yield all results whose turn has come."""
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
        # With nothing in flight there is always space: a line larger than the limit would wait forever otherwise.
        if not self._sizes:
            return False
        ahead = len(self._waiting) >= _AHEAD * self._most_lines or self._waiting_bytes > self._most_bytes
        return ahead or len(self._sizes) >= self._most_lines or self._bytes + size > self._most_bytes


Ask = Callable[[InputLine, Task], Awaitable[BatchResult]]
_SYNC = 1.0  # seconds between calls that bring results to the disk
_BREATH = 256  # lines that may be passed over before other tasks of the event loop may run


@dataclass(frozen=True, slots=True)
class Input:
    """The lines of an input, and what is known of them."""

    lines: Iterable[InputLine]
    digests: array[int]
    """64-bit digest of each line, as it was when the run began."""
    finished: bytearray
    """A byte for each line, 1 = its result is in the output."""
    paths: Collection[str]
    """Routes that a line may ask."""
    limit: int
    """Most bytes of a line."""


class Feed:
    """A run over an input: lines without a result are asked. `wrote` is called with each result after it is written."""

    def __init__(
        self, source: Input, ask: Ask, output: Output, in_flight: InFlight, wrote: Callable[[BatchResult], None]
    ) -> None:
        self._source, self._ask, self._output, self._in_flight, self._wrote = source, ask, output, in_flight, wrote
        self._stopped = False

    def stop(self) -> None:
        """Ask no more lines; those in flight are waited for."""
        self._stopped = True

    async def run(self) -> None:
        """Ask all lines. Raises OtherInput, CannotWrite, and what `ask` raises; whatever was written then is whole."""
        try:
            async with asyncio.TaskGroup() as group:
                syncing = group.create_task(self._sync())
                async with asyncio.TaskGroup() as asking:
                    await self._read(asking)
                syncing.cancel()
        except BaseExceptionGroup as several:
            raise _first(several) from None
        finally:
            self._output.sync()

    async def _sync(self) -> None:
        while True:
            await asyncio.sleep(_SYNC)
            await asyncio.to_thread(self._output.sync)

    async def _read(self, asking: asyncio.TaskGroup) -> None:
        ids, read = CustomIds(), 0
        for line in self._source.lines:
            self._check(line)
            read = line.number
            # Lines that have a result are read as well, so that later ones that repeat their custom_id are found.
            task = _unique(read_task(line, self._source.paths, self._source.limit), line.place, ids)
            if line.number % _BREATH == 0:
                await asyncio.sleep(0)
            if not self._source.finished[line.number - 1]:
                await self._in_flight.enter(line)
                if self._stopped:
                    return
                self._begin(line, task, asking)
        if read < len(self._source.digests):
            raise OtherInput(f"The input has lost lines behind request {read} since the run began: leave it as it is.")

    def _begin(self, line: InputLine, task: Task | Fault, asking: asyncio.TaskGroup) -> None:
        if isinstance(task, Fault):
            self._take(BatchResult.not_asked(line, task))
        else:
            asking.create_task(self._answer(line, task))

    async def _answer(self, line: InputLine, task: Task) -> None:
        self._take(await self._ask(line, task))

    def _take(self, result: BatchResult) -> None:
        for ready in self._in_flight.leave(result):
            self._output.append(ready.line)
            self._wrote(ready)

    def _check(self, line: InputLine) -> None:
        known = self._source.digests
        if line.number > len(known) or line.digest != known[line.number - 1]:
            raise OtherInput(f"Line {line.place} of the input has changed since the run began: leave it as it is.")


def _unique(task: Task | Fault, place: int, ids: CustomIds) -> Task | Fault:
    """Return the task, or a fault if its line repeats a custom_id, whatever else the line says."""
    if task.custom_id is None or (first := ids.first_use(task.custom_id, place)) is None:
        return task
    message = f"Line {place} has the custom_id {task.custom_id!r:.80} of line {first}: give each line its own."
    return Fault(task.custom_id, "duplicate_custom_id", message)


def _first(several: BaseExceptionGroup[BaseException]) -> BaseException:
    error = several.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


_TOO_MANY = 429
_SERVER_FAILURES = (500, 502, 503, 504)
"""Statuses of failures that need not be the line's own fault."""
_SUSPICIOUS = 2
"""Failures after which a line is not asked beside others that failed as often: one of them may kill engines."""


Post = Callable[[str, bytes, str], Awaitable["httpx.Response"]]
"""A function that sends a server a path, a body and a request id, and returns the whole reply."""


class TaskClient:
    """A client of a server, which asks again after a failure of the server, and after 429 as often as need be.

    `until_ready` returns when there is an engine, and raises when there will be none.
    """

    def __init__(self, post: Post, until_ready: Callable[[], Awaitable[None]], retries: int) -> None:
        self._post, self._until_ready, self._retries = post, until_ready, retries
        self._suspect = asyncio.Lock()

    async def __call__(self, line: InputLine, task: Task) -> BatchResult:
        failures = 0
        while True:
            request_id = f"{line.id}-{failures + 1}"
            async with self._suspect if failures >= _SUSPICIOUS else nullcontext():
                await self._until_ready()
                reply = await self._post(task.path, task.body, request_id)
            failed = reply.status_code in _SERVER_FAILURES
            failures += failed
            if reply.status_code != _TOO_MANY and (not failed or failures > self._retries):
                return BatchResult.answered(line, task, reply.status_code, request_id, _content(reply))
            await asyncio.sleep(float(reply.headers.get("retry-after", 1)))


def _content(reply: httpx.Response) -> Any:
    try:
        return reply.json()
    except ValueError:
        return reply.text
