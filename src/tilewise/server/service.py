"""Service: from a prepared call to pieces of its answer, for all routes.

Media are fetched, decoded and cut in threads, never on the event loop. Admission, deadlines and what happens when the
engine is away are decided here, once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from tilewise.errors import Expired, Overloaded
from tilewise.inputs.chat import MediaReader
from tilewise.inputs.prepare import Preparer
from tilewise.outputs.group import AnswerGroup, Piece
from tilewise.remote.supervisor import Supervisor
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
        self, engine: Supervisor, preparer: Preparer, reader: MediaReader, admission: Admission, threads: int
    ) -> None:
        self.engine = engine
        self.preparer = preparer
        self.reader = reader
        self.admission = admission
        self._threads = ThreadPoolExecutor(threads, "tilewise-prepare")
        self._preparing = 0
        self._waiting_tokens = 0

    def check_admission(self) -> None:
        """Before anything is fetched. Raises Overloaded or EngineDead."""
        self.engine.check()
        limit, waiting = self.admission.max_queued_requests, self.engine.load.waiting + self._preparing
        if limit is not None and waiting >= limit:
            raise Overloaded(f"{waiting} requests are waiting, the limit is {limit}: send the request again later.")

    async def prepare(self, work: Callable[[], Result]) -> Result:
        """Do what takes a processor, or waits for others, in a thread."""
        self._preparing += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._preparing -= 1

    async def whole(self, request: Request) -> AnswerGroup:
        """The answers when all of them have ended."""
        group = self.group(request)
        async with aclosing(self.pieces(group)) as pieces:
            async for _ in pieces:
                pass
        return group

    def group(self, request: Request) -> AnswerGroup:
        return AnswerGroup(self.preparer.tokenizer, request, self.preparer.spec)

    async def pieces(self, group: AnswerGroup) -> AsyncGenerator[list[Piece]]:
        """What each step adds to the answers. Close it to take the request out of the engine."""
        tokens = len(group.request.prompt_ids)
        self._check_tokens(tokens)
        first = True
        self._waiting_tokens += tokens
        try:
            async with self.engine.open(group.requests) as stream:
                async for deltas in stream:
                    if first:
                        self._waiting_tokens -= tokens
                        first = False
                    pieces = [piece for delta in deltas if (piece := group.take(delta)) is not None]
                    for piece in pieces:
                        if piece.engine_goes_on:
                            stream.abort(group.requests[piece.index].id)
                    yield pieces
                    if group.finished:
                        return
        finally:
            self._waiting_tokens -= tokens if first else 0

    def _check_tokens(self, tokens: int) -> None:
        limit = self.admission.max_queued_tokens
        if limit is not None and self._waiting_tokens and self._waiting_tokens + tokens > limit:
            raise Overloaded(
                f"Prompts of {self._waiting_tokens} tokens are waiting, with the {tokens} of this one they pass the "
                f"limit of {limit}: send the request again later."
            )

    @asynccontextmanager
    async def deadline(self) -> AsyncGenerator[None]:
        """Raises Expired if what is done inside takes too long."""
        seconds = self.admission.deadline
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise Expired(f"The request took longer than its deadline of {seconds:g} seconds.") from None

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
