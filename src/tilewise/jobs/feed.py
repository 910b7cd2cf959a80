"""The run itself: lines are read, those without a result are asked, and results are written as they come."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass

from tilewise.jobs.custom_ids import CustomIds
from tilewise.jobs.output import Output
from tilewise.jobs.result import Result
from tilewise.jobs.scan import OtherInput
from tilewise.jobs.source import Line
from tilewise.jobs.task import Fault, Task, read_task
from tilewise.jobs.window import Window

Ask = Callable[[Line, Task], Awaitable[Result]]
_SYNC = 1.0  # seconds between the moments from which the disk has all
_BREATH = 256  # lines that may be passed over before others may do something


@dataclass(frozen=True, slots=True)
class Input:
    """Lines, and what is known of them."""

    lines: Iterable[Line]
    digests: array[int]
    finished: bytearray
    paths: Collection[str]
    limit: int


class Feed:
    """`wrote` is called with each result behind its writing."""

    def __init__(
        self, source: Input, ask: Ask, output: Output, window: Window, wrote: Callable[[Result], None]
    ) -> None:
        self._source, self._ask, self._output, self._window, self._wrote = source, ask, output, window, wrote
        self._stopped = False

    def stop(self) -> None:
        """Ask no more; what is in flight is waited for."""
        self._stopped = True

    async def run(self) -> None:
        """Raises what ended it: OtherInput, CannotWrite, what `ask` raises. Whatever was written is whole."""
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
            task = _unique(read_task(line, self._source.paths, self._source.limit), line.place, ids)
            if line.number % _BREATH == 0:
                await asyncio.sleep(0)
            if not self._source.finished[line.number - 1]:
                await self._window.enter(line)
                if self._stopped:
                    return
                self._begin(line, task, asking)
        if read < len(self._source.digests):
            raise OtherInput(f"The input has lost lines behind request {read} since the run began: leave it as it is.")

    def _begin(self, line: Line, task: Task | Fault, asking: asyncio.TaskGroup) -> None:
        if isinstance(task, Fault):
            self._take(Result.not_asked(line, task))
        else:
            asking.create_task(self._answer(line, task))

    async def _answer(self, line: Line, task: Task) -> None:
        self._take(await self._ask(line, task))

    def _take(self, result: Result) -> None:
        for ready in self._window.leave(result):
            self._output.append(ready.line)
            self._wrote(ready)

    def _check(self, line: Line) -> None:
        known = self._source.digests
        if line.number > len(known) or line.digest != known[line.number - 1]:
            raise OtherInput(f"Line {line.place} of the input has changed since the run began: leave it as it is.")


def _unique(task: Task | Fault, place: int, ids: CustomIds) -> Task | Fault:
    """A line that repeats a custom_id is at fault, whatever else it says."""
    if task.custom_id is None or (first := ids.first_use(task.custom_id, place)) is None:
        return task
    message = f"Line {place} has the custom_id {task.custom_id!r:.80} of line {first}: give each line its own."
    return Fault(task.custom_id, "duplicate_custom_id", message)


def _first(several: BaseExceptionGroup[BaseException]) -> BaseException:
    error = several.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
