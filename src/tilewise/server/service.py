"""Service: from a prepared call to pieces of its answer, for all routes.

Media are fetched, decoded and cut in threads, never on the event loop. Admission, deadlines and what happens when the
engine is away are decided here, once.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from tilewise.engine.delta import TokenDelta
from tilewise.errors import EngineDead, Expired, Overloaded
from tilewise.ignored import Ignored, IgnoredLog
from tilewise.inputs.media_io import MediaOptions
from tilewise.inputs.media_reader import MediaReader
from tilewise.inputs.prepare import Preparer
from tilewise.outputs.group import AnswerGroup, Piece
from tilewise.remote.replicas import Replicas
from tilewise.remote.stream import Stream
from tilewise.server.metrics import Metrics
from tilewise.server.tracing import Tracing
from tilewise.types import Request

Result = TypeVar("Result")
RETRY_AFTER = 1  # seconds, for requests that are one too many


@dataclass(frozen=True, slots=True)
class Admission:
    """How much may wait. None = no limit."""

    max_queued_requests: int | None = None
    max_queued_tokens: int | None = None
    deadline: float | None = None
    """Seconds that a request may take, media and queue included."""


class Service:
    """What routes share: a preparer, the engine, and the threads that prepare."""

    def __init__(
        self,
        engine: Replicas,
        preparer: Preparer,
        reader: MediaReader,
        admission: Admission,
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
        self._draining = False
        self.preparer = preparer
        self.reader = reader
        self.admission = admission
        self._threads = ThreadPoolExecutor(threads, "tilewise-prepare")
        self._preparing = 0
        self._waiting_tokens = 0

    def check_admission(self) -> None:
        """Before anything is fetched. Raises Overloaded or EngineDead."""
        if self._draining:
            raise EngineDead("The server is shutting down: send the request to another one.")
        self.engine.check()
        limit, waiting = self.admission.max_queued_requests, self.engine.load.waiting + self._preparing
        if limit is not None and waiting >= limit:
            self.metrics.rejected("queued_requests")
            raise Overloaded(f"{waiting} requests are waiting, the limit is {limit}: send the request again later.")

    def note_ignored(self, ignored: Ignored, where: str) -> None:
        """Names that a request brought without effect: each is counted, and logged the first time."""
        self.ignored_log.take(ignored.reasons, where)
        self.metrics.ignored(ignored.names)

    async def prepare(self, work: Callable[[], Result], light: bool = False) -> Result:
        """Do what takes a processor, or waits for others, in a thread; what is light, at once."""
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
        """The same for what reads media: whoever stops waiting ends the reading, too. `scope` is whose media a `uuid`
        names; `ignored` is told what of the media was left out."""
        cancelled = threading.Event()
        reader = self.reader.timed(options, cancelled=cancelled, scope=scope, ignored=ignored)
        try:
            return await self.prepare(lambda: work(reader), light)
        finally:
            cancelled.set()

    async def whole(self, request: Request, see: Callable[[Piece], None] = lambda piece: None) -> AnswerGroup:
        """The answers when all of them have ended; `see` is shown each token on the way."""
        group = self.group(request)
        async with aclosing(self.pieces(group)) as pieces:
            async for found in pieces:
                for piece in found:
                    see(piece)
        return group

    def group(self, request: Request) -> AnswerGroup:
        return AnswerGroup(self.preparer.tokenizer, request, self.preparer.spec)

    async def pieces(self, group: AnswerGroup) -> AsyncGenerator[list[Piece]]:
        """What each step adds to the answers: nothing as soon as the engine has the request, then its tokens.

        Close it to take the request out of the engine. A request is counted with the engine of its first answer.
        """
        tokens = len(group.request.prompt_ids)
        self._check_tokens(tokens)
        waiting, engine = True, 0
        self._waiting_tokens += tokens
        try:
            async with self.engine.open(group.requests) as stream:
                engine = stream.engine_of(group.requests[0].id)
                yield []
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

    def _take(self, group: AnswerGroup, deltas: list[TokenDelta], stream: Stream[TokenDelta]) -> list[Piece]:
        pieces = []
        for delta in deltas:
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

    def _check_tokens(self, tokens: int) -> None:
        limit = self.admission.max_queued_tokens
        if limit is not None and self._waiting_tokens and self._waiting_tokens + tokens > limit:
            self.metrics.rejected("queued_tokens")
            raise Overloaded(
                f"Prompts of {self._waiting_tokens} tokens are waiting, with the {tokens} of this one they pass the "
                f"limit of {limit}: send the request again later."
            )

    @asynccontextmanager
    async def deadline(self, arrival: float | None = None) -> AsyncGenerator[None]:
        """Raises Expired if what is done inside takes too long, counted from the arrival, else from now."""
        seconds = self.admission.deadline
        spent = 0.0 if arrival is None else time.monotonic() - arrival
        try:
            async with asyncio.timeout(None if seconds is None else max(0.0, seconds - spent)):
                yield
        except TimeoutError:
            raise Expired(f"The request took longer than its deadline of {seconds:g} seconds.") from None

    def drain(self) -> None:
        """Take no more requests."""
        self._draining = True

    @contextmanager
    def counted(self) -> Generator[None]:
        """While a request is answered."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self.tracing is not None:
            self.tracing.close()
