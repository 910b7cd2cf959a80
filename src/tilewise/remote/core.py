"""RemoteCore: engines in processes of their own, for a program that steps them as if they were one in its own process.

LoopThread: the event loop in which their supervisors live, for callers that have no such loop, or another.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Literal, TypeVar

from tilewise.engine.counters import Counters, EngineLoad
from tilewise.errors import TilewiseError
from tilewise.plan import Resolved
from tilewise.remote.engine import EngineProcess, Sink
from tilewise.remote.replicas import Replicas, replicas_of
from tilewise.remote.wire import Launch, Ready, RequestRefused
from tilewise.types import Request, SequenceDelta

Result = TypeVar("Result")


class LoopThread:
    """An event loop in a thread of its own, in which engines are looked after."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def start(self, replicas: Replicas, process: EngineProcess | None = None) -> Ready:
        """Start engines, the first in a process that may have begun already. Raises what hinders the start."""
        try:
            return self.run(replicas.start(process))
        except BaseException:
            self.call(replicas.discard)
            raise

    def submit(self, replicas: Replicas, requests: Sequence[Request], sink: Sink) -> None:
        """Submit requests; the sink is called in the loop, with what hinders it, too."""

        def submit() -> None:
            try:
                replicas.submit(requests, sink)
            except TilewiseError as error:
                sink.fail(error)

        self.call(submit)

    def close(self, replicas: Replicas) -> None:
        """End the engines, and the loop. A second call does nothing."""
        if not self.ended:
            self.run(replicas.close())
            self.end()

    def begin(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do something in the loop, and wait for it here."""
        return self.begin(work).result()

    def call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call a function in the loop, behind all that was begun or called before."""
        self._loop.call_soon_threadsafe(function, *arguments)

    def end(self) -> None:
        self.call(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def ended(self) -> bool:
        return self._loop.is_closed()


class RemoteCore:
    """Engines elsewhere, with the methods of `EngineCore`: its step computes, this one waits. Belongs to one thread."""

    def __init__(self, launch: Launch) -> None:
        """Start the engines, and return when the model is loaded. Raises what hinders the start."""
        self._arrived: SimpleQueue[SequenceDelta | RequestRefused] = SimpleQueue()
        self._unfinished: set[str] = set()
        self.replicas = replicas_of(launch)
        self._loop = LoopThread("tilewise-replicas")
        try:
            self._loop.start(self.replicas)
        except BaseException:
            self._loop.end()
            raise

    @property
    def resolved(self) -> Resolved:
        return self.replicas.resolved

    @property
    def has_unfinished(self) -> bool:
        return bool(self._unfinished)

    @property
    def counters(self) -> Counters:
        """Counters since the start; a copy."""
        return self.replicas.counters.copy()

    @property
    def load(self) -> EngineLoad:
        return self.replicas.load

    def submit(self, request: Request) -> None:
        """Submit a request. If it is refused, or no engine is there, a later step says so."""
        self._unfinished.add(request.id)
        self._loop.submit(self.replicas, [request], _Sink(self.replicas, request.id, self._arrived))

    def abort(self, request_id: str) -> None:
        """End a request wherever it is; an unknown id is one that has just finished."""
        if request_id in self._unfinished:
            self._unfinished.discard(request_id)
            self._loop.call(self.replicas.forget, [request_id], (request_id,))

    def step(self) -> list[SequenceDelta | RequestRefused]:
        """Return the tokens and refusals that have come, one at least unless nothing is unfinished."""
        found: list[SequenceDelta | RequestRefused] = []
        while self._unfinished and not found:
            arrived = [self._arrived.get()]
            with suppress(Empty):
                while True:
                    arrived.append(self._arrived.get_nowait())
            found = [one for one in arrived if one.request_id in self._unfinished]  # others were aborted meanwhile
        for one in found:
            if isinstance(one, RequestRefused):
                self.abort(one.request_id)
            elif one.finish_reason is not None:
                self._unfinished.discard(one.request_id)
        return found

    def reset(self, cache: Literal["prefix", "tiles"]) -> bool:
        """Empty a cache, as far as nothing that runs uses it; return whether all of it is empty. Raises EngineDead."""
        return self._loop.run(self.replicas.reset(cache))

    def close(self) -> None:
        """End the engines; a second call does nothing."""
        self._loop.close(self.replicas)


class _Sink:
    """A sink of one request, which passes its tokens and its failure to the thread that steps."""

    def __init__(
        self, replicas: Replicas, request_id: str, arrived: SimpleQueue[SequenceDelta | RequestRefused]
    ) -> None:
        self._replicas, self._request_id, self._arrived = replicas, request_id, arrived

    def put(self, delta: SequenceDelta) -> None:
        if delta.finish_reason is not None:
            self._replicas.forget([self._request_id], ())
        self._arrived.put(delta)

    def fail(self, error: TilewiseError) -> None:
        self._arrived.put(RequestRefused(self._request_id, error))
