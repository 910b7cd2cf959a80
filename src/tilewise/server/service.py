"""AnswerService: requests are prepared and answered piece by piece, for all routes.

Media are fetched, decoded and cut in threads, never on the event loop. Admission, deadlines and what happens when the
engine is away are decided here, once.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import TypeVar

from tilewise.errors import EngineDead, Expired, Overloaded
from tilewise.ignored import Ignored, IgnoredLog
from tilewise.inputs.media.reader import MediaOptions, MediaReader
from tilewise.inputs.prepare import Preparer
from tilewise.outputs.group import AnswerDelta, AnswerGroup
from tilewise.outputs.parts import AnswerReader
from tilewise.remote.engine import Stream
from tilewise.remote.replicas import Replicas
from tilewise.server.config import ServerConfig
from tilewise.server.metrics import Metrics
from tilewise.server.tracing import Tracing
from tilewise.types import Request, RequestOutput, SequenceDelta, SequenceFailure

Result = TypeVar("Result")
Item = TypeVar("Item")


class AnswerService:
    """The service that all routes share: it has a preparer, the threads that prepare, and the engine."""

    def __init__(
        self,
        engine: Replicas,
        preparer: Preparer,
        reader: MediaReader,
        config: ServerConfig,
        metrics: Metrics,
        threads: int,
        tracing: Tracing | None = None,
    ) -> None:
        self.engine = engine
        self.metrics = metrics
        self.tracing = tracing
        self.in_flight = 0
        """Requests whose answers have not ended."""
        self.ignored_log = IgnoredLog()
        self.draining = False
        """True once no more requests are taken, as the server is about to end."""
        self.preparer = preparer
        self.reader = reader
        self._config = config
        self._threads = ThreadPoolExecutor(threads, "tilewise-prepare")
        self._preparing = 0
        self._waiting_tokens = 0

    @asynccontextmanager
    async def admitted(self) -> AsyncGenerator[None]:
        """Enter if a request can be taken, and give its preparation, and an answer that comes whole, their deadline.

        Raises Overloaded, EngineDead or Expired; to be entered before anything is fetched.
        """
        self._check_admission()
        async with self.deadline():
            yield

    def _check_admission(self) -> None:
        if self.draining:
            raise EngineDead("The server is shutting down: send the request to another one.")
        self.engine.check()
        limit, waiting = self._config.max_num_queued_reqs, self.engine.load.waiting + self._preparing
        if limit is not None and waiting >= limit:
            self.metrics.rejected("queued_requests")
            raise Overloaded(f"{waiting} requests are waiting, the limit is {limit}: send the request again later.")

    def note_ignored(self, ignored: Ignored, where: str) -> None:
        """Count the names that a request brought without effect, and log each of them the first time."""
        self.ignored_log.take(ignored.reasons, where)
        self.metrics.ignored(ignored.names)

    async def prepare(self, work: Callable[[], Result], light: bool = False) -> Result:
        """Do work that computes or waits for others in a thread, and light work at once, on the event loop."""
        if light:
            return work()
        self._preparing += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._preparing -= 1

    async def read(
        self,
        work: Callable[[MediaReader], Result],
        options: MediaOptions,
        scope: str,
        ignored: Ignored,
        light: bool = False,
    ) -> Result:
        """Do work that reads media, as `prepare` does; a caller who stops waiting ends the reading, too.

        `scope` is whose media a `uuid` names; what of the media was left out goes into `ignored`.
        """
        cancelled = threading.Event()
        reader = self.reader.timed(options, cancelled=cancelled, scope=scope, ignored=ignored)
        try:
            return await self.prepare(lambda: work(reader), light)
        finally:
            cancelled.set()

    async def whole(
        self, groups: Iterable[AnswerGroup], readers: Sequence[Sequence[AnswerReader]] = ()
    ) -> list[RequestOutput]:
        """Return the answers to several requests when all have ended; meanwhile `readers` of each request read them."""
        groups = list(groups)
        async with aclosing(merged([self.pieces(group) for group in groups])) as steps:
            async for number, pieces in steps:
                for piece in pieces if readers else ():
                    readers[number][piece.index].add(piece.text, piece.finish_reason is not None)
        return [group.output() for group in groups]

    def group(self, request: Request) -> AnswerGroup:
        return AnswerGroup(self.preparer.tokenizer, request, self.preparer.spec)

    async def pieces(self, group: AnswerGroup) -> AsyncGenerator[list[AnswerDelta]]:
        """Yield what each step adds to the answers: an empty list once the engine has the request, then its tokens.

        Close the generator to take the request out of the engine. A request is counted with the engine of its first
        answer. The tokens of its prompt count as waiting until its first token comes.
        """
        tokens = len(group.request.prompt_ids)
        waiting, engine = True, 0
        self._waiting_tokens += tokens
        try:
            async with self.engine.open(group.requests) as stream:
                engine = stream.engine_of(group.requests[0].id)
                yield []  # the engine has the request: routes send status and headers now, before the prefill
                async for deltas in stream:
                    self._waiting_tokens -= tokens if waiting else 0
                    waiting = False
                    yield self._take(group, deltas, stream)
                    if group.finished:
                        return
        finally:
            self._waiting_tokens -= tokens if waiting else 0
            if group.finished:
                self.metrics.engines[engine].finished(group.request, group.output())
            else:
                self.metrics.engines[engine].aborted(len(group.requests))
            if self.tracing is not None:
                self.tracing.ended(group)

    def _take(
        self, group: AnswerGroup, deltas: list[SequenceDelta], stream: Stream[SequenceDelta]
    ) -> list[AnswerDelta]:
        """Return what the deltas add to the answers. Raises NotFinite where one of them failed."""
        pieces = []
        for delta in deltas:
            if isinstance(delta, SequenceFailure):
                group.fail(delta)
                raise delta.error
            before = group.last_time(delta.request_id)
            piece = group.take(delta)
            if piece is None:
                continue
            engine = stream.engine_of(delta.request_id)
            self.metrics.engines[engine].token(delta, group.request.arrival, before)
            pieces.append(piece)
            if piece.engine_goes_on:
                stream.abort(delta.request_id)
        return pieces

    def check_tokens(self, requests: Sequence[Request]) -> None:
        """Raise Overloaded if too many tokens of prompts wait already; to be called before an answer begins."""
        tokens = sum(len(request.prompt_ids) for request in requests)
        limit = self._config.max_num_queued_tokens
        if limit is not None and self._waiting_tokens and self._waiting_tokens + tokens > limit:
            self.metrics.rejected("queued_tokens")
            raise Overloaded(
                f"Prompts of {self._waiting_tokens} tokens are waiting, with the {tokens} of this one they pass the "
                f"limit of {limit}: send the request again later."
            )

    @property
    def keep_alive(self) -> float:
        """Seconds after which a stream that has nothing to tell says that it is alive; 0 = never."""
        return self._config.sse_keep_alive_interval

    def seconds_left(self, arrival: float | None = None) -> float | None:
        """Return the seconds until the deadline of a request that came at `arrival`, or now; None = it has none."""
        seconds = self._config.request_timeout
        spent = 0.0 if arrival is None else time.monotonic() - arrival
        return None if seconds is None else max(0.0, seconds - spent)

    @asynccontextmanager
    async def deadline(self, arrival: float | None = None) -> AsyncGenerator[None]:
        """Raise Expired if what is done inside takes too long, counted from the arrival, else from now."""
        try:
            async with asyncio.timeout(self.seconds_left(arrival)):
                yield
        except TimeoutError:
            seconds = self._config.request_timeout
            raise Expired(f"The request took longer than its deadline of {seconds:g} seconds.") from None

    async def timed(self, items: AsyncGenerator[Item], arrival: float) -> AsyncGenerator[Item]:
        """Yield the items. Raises Expired if one does not come before the deadline of a request.

        The time runs while an item is waited for. What happens to it afterwards is not cancelled from here: a generator
        cannot know in whose code it would interrupt its caller.
        """
        async with aclosing(items):
            while True:
                async with self.deadline(arrival):
                    try:
                        item = await anext(items)
                    except StopAsyncIteration:
                        return
                yield item

    @contextmanager
    def counted(self) -> Generator[None]:
        """Count a request as in flight while the block runs."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self.preparer.opener is not None:
            self.preparer.opener.close()
        if self.tracing is not None:
            self.tracing.close()


async def merged(streams: Sequence[AsyncGenerator[Item]]) -> AsyncGenerator[tuple[int, Item]]:
    """Yield the items of all streams as they come, each with the number of its stream.

    The first error of any stream ends all; closing the generator closes all.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for found in only:
                yield 0, found
        return
    queue: asyncio.Queue[tuple[int, Item | None]] = asyncio.Queue()
    tasks = [asyncio.ensure_future(_read_into(queue, number, stream)) for number, stream in enumerate(streams)]
    try:
        running = len(tasks)
        while running:
            number, item = await queue.get()
            if item is None:
                await tasks[number]  # raises the error that the stream ended by
                running -= 1
            else:
                yield number, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _read_into(queue: asyncio.Queue[tuple[int, Item | None]], number: int, stream: AsyncGenerator[Item]) -> None:
    """Put the items of a stream into the queue, and None behind them."""
    try:
        async with aclosing(stream):
            async for item in stream:
                queue.put_nowait((number, item))
    finally:
        queue.put_nowait((number, None))
