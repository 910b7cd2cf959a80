"""Supervisor: keeps an engine's process alive, and brings what it says to those who wait for it.

All methods belong to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tilewise.engine.counters import Counters, Load
from tilewise.errors import EngineDead, TilewiseError
from tilewise.plan import Resolved
from tilewise.remote.child import EngineProcess
from tilewise.remote.engine import RemoteEngine
from tilewise.remote.stream import Stream
from tilewise.remote.wire import CannotStart, FromEngine, Launch, Outbox, Ready, WasReset
from tilewise.types import Request

logger = logging.getLogger("tilewise")

State = Literal["starting", "ready", "restarting", "failed", "closed"]
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
"""Seconds before an engine that died is started again; each time twice as long until one gets ready."""


class Watcher(Protocol):
    """Who wants to know how the engine fares."""

    def took(self, outbox: Outbox) -> None:
        """What came of a step; counters begin at zero again with each new process."""

    def became(self, state: State) -> None:
        """Whether there is an engine now."""


@dataclass(frozen=True, slots=True)
class RestartRule:
    """An engine that dies more often than this is given up."""

    most: int = 3
    window: float = 300.0
    """Seconds in which deaths are counted."""


class Supervisor:
    """Owns the engine's process and the streams of requests in it."""

    def __init__(self, launch: Launch, rule: RestartRule = RestartRule()) -> None:
        self._launch = launch
        self._watchers: list[Watcher] = []
        self._rule = rule
        self._deaths: deque[float] = deque()
        self._streams: dict[str, Stream[Any]] = {}
        self._resets: deque[asyncio.Future[bool]] = deque()
        self._pause = _FIRST_PAUSE
        self._state: State = "starting"
        self.restarts = 0
        self.load = Load(0, 0, 0.0)
        self.counters = Counters()

    async def start(self, process: EngineProcess | None = None) -> Ready:
        """Returns when the model is loaded, in a process that may have begun already.

        Raises the engine's own error if it cannot start.
        """
        self._loop = asyncio.get_running_loop()
        self._first: asyncio.Future[Ready] = self._loop.create_future()
        self._run_in(process or EngineProcess())
        self.ready = await self._first
        return self.ready

    @property
    def state(self) -> State:
        return self._state

    def _become(self, state: State) -> None:
        self._state = state
        for watcher in self._watchers:
            watcher.became(state)

    def watch(self, watcher: Watcher) -> None:
        """Tell somebody of all that happens from now on."""
        self._watchers.append(watcher)

    @property
    def resolved(self) -> Resolved:
        return self.ready.resolved

    @property
    def pid(self) -> int:
        return self._engine.pid

    @property
    def retry_after(self) -> int:
        """Seconds after which asking again makes sense while the engine is away."""
        return round(self._pause) + 1

    def open(self, requests: Sequence[Request]) -> Stream[Any]:
        """Submit requests; what their engine makes of them, tokens or rows, comes through the stream.

        Raises EngineDead while there is no engine.
        """
        self.check()
        stream: Stream[Any] = Stream([request.id for request in requests], self._forget)
        for request in requests:
            self._streams[request.id] = stream
            self._engine.submit(request)
        return stream

    def check(self) -> None:
        """Raises EngineDead unless requests are taken."""
        if self.state != "ready":
            raise EngineDead(f"The engine is {self.state}: send the request again in {self.retry_after} seconds.")

    async def reset(self, cache: Literal["prefix", "tiles"]) -> bool:
        """Empty a cache of the engine; whether all of it is empty now. Raises EngineDead."""
        self.check()
        done: asyncio.Future[bool] = self._loop.create_future()
        self._resets.append(done)
        self._engine.reset(cache)
        return await done

    async def close(self) -> None:
        """End the engine, and every stream that is left."""
        self._become("closed")
        self.end_streams(EngineDead("The server is shutting down: send the request to another one."))
        await self._engine.close()

    def _run_in(self, process: EngineProcess) -> None:
        self._engine = RemoteEngine(process, self._launch, self._loop, self._take, self._take_end)

    def _take(self, message: FromEngine) -> None:
        if isinstance(message, Ready):
            self._pause = _FIRST_PAUSE
            self._become("ready")
            if not self._first.done():
                self._first.set_result(message)
        elif isinstance(message, CannotStart):
            self._fail(message.error)
        elif isinstance(message, WasReset):
            if not (waiting := self._resets.popleft()).done():
                waiting.set_result(message.done)
        else:
            self._deliver(message)

    def _deliver(self, outbox: Outbox) -> None:
        self.load, self.counters = outbox.load, outbox.counters
        for refused in outbox.refused:
            if stream := self._streams.get(refused.request_id):
                stream.fail(refused.error)
        for delta in outbox.deltas:
            if stream := self._streams.get(delta.request_id):
                stream.put(delta)
        # Streams that got something are woken before this, as nobody waits for figures.
        self._loop.call_soon(self._tell, outbox)

    def _tell(self, outbox: Outbox) -> None:
        for watcher in self._watchers:
            watcher.took(outbox)

    def _take_end(self) -> None:
        if self.state in ("closed", "failed"):
            return
        status = self._engine.exit_status
        how = f"was ended by signal {-status}" if status is not None and status < 0 else f"ended with status {status}"
        logger.error("The engine's process %s; %d requests are lost.", how, len(self._streams))
        if not self._first.done():
            self._fail(EngineDead(f"The engine's process {how} while it was starting."))
            return
        self.load = Load(0, 0, 0.0)
        self.end_streams(
            EngineDead(f"The engine's process {how}: send the request again in {self.retry_after} seconds.")
        )
        if self._dies_too_often():
            logger.error("It has died %d times in %g seconds and is given up.", len(self._deaths), self._rule.window)
            self._become("failed")
            return
        self._become("restarting")
        logger.warning("The engine is started again in %.0f seconds.", self._pause)
        self._loop.call_later(self._pause, self._restart)

    def _dies_too_often(self) -> bool:
        now = self._loop.time()
        self._deaths.append(now)
        while self._deaths[0] < now - self._rule.window:
            self._deaths.popleft()
        return len(self._deaths) > self._rule.most

    def _restart(self) -> None:
        if self.state == "restarting":
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            self.restarts += 1
            self._run_in(EngineProcess())

    def _fail(self, error: TilewiseError) -> None:
        """The first start decides whether there is a server at all; later failures are tried again."""
        if not self._first.done():
            self._become("failed")
            self._first.set_exception(error)
        else:
            logger.error("The engine cannot be started again: %s", error)

    def end_streams(self, error: TilewiseError) -> None:
        """Whoever waits is told why nothing more will come."""
        for stream in set(self._streams.values()):
            stream.fail(error)
        self._streams.clear()
        for waiting in self._resets:
            if not waiting.done():
                waiting.set_exception(error)
        self._resets.clear()

    def _forget(self, request_ids: Sequence[str], unfinished: tuple[str, ...]) -> None:
        """A stream is closed: whatever of it is still in the engine is of no use."""
        for request_id in request_ids:
            self._streams.pop(request_id, None)
        if unfinished and self.state == "ready":
            self._engine.abort(unfinished)
