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

from tilewise.engine.counters import Counters, EngineLoad
from tilewise.errors import EngineDead, TilewiseError
from tilewise.plan import Resolved
from tilewise.remote.engine import EngineProcess, RemoteEngine, Sink, Stream
from tilewise.remote.wire import Abort, CannotStart, Ends, FromEngine, Launch, Outbox, Ready, ResetCache, WasReset
from tilewise.types import Request

logger = logging.getLogger("tilewise")

State = Literal["starting", "ready", "restarting", "failed", "closed"]
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
"""Seconds before an engine that died is started again: the first pause, doubled each time until one gets ready."""


class Watcher(Protocol):
    """A listener to what one engine does, or several, each known by its number."""

    def took(self, engine: int, outbox: Outbox) -> None:
        """Take what came of a step; counters begin at zero again with each new process."""

    def became(self, engine: int, state: State) -> None:
        """Take the new state of an engine."""


@dataclass(frozen=True, slots=True)
class RestartRule:
    """A limit on deaths: an engine that dies more than `most` times within `window` is given up."""

    most: int = 3
    window: float = 300.0
    """Seconds in which deaths are counted."""

    def is_broken_by(self, deaths: deque[float], now: float) -> bool:
        """Note another death at `now` among the moments of the earlier ones; return whether these are too many."""
        deaths.append(now)
        while deaths[0] < now - self.window:
            deaths.popleft()
        return len(deaths) > self.most


class Supervisor:
    """Owns the engine's process and the streams of requests in it."""

    def __init__(
        self, launch: Launch, rule: RestartRule = RestartRule(), number: int = 0, name: str = "The engine"
    ) -> None:
        """`number` and `name` are the engine's among several, in the log and in errors."""
        self._launch = launch
        self.number, self._name = number, name
        self._watchers: list[Watcher] = []
        self._rule = rule
        self._deaths: deque[float] = deque()
        self._sinks: dict[str, Sink] = {}
        self._resets: deque[asyncio.Future[bool]] = deque()
        self._pause = _FIRST_PAUSE
        self.state: State = "starting"
        self._begun = False
        self._heard = 0.0
        self._reason: TilewiseError | None = None
        self.load = EngineLoad(0, 0, 0.0)
        self.counters = Counters()

    async def start(self, process: EngineProcess | None = None) -> Ready:
        """Start the engine, in a process that may have begun already, and return when the model is loaded.

        Raises the engine's own error if it cannot start.
        """
        return await self.begin(process or EngineProcess(self.number))

    def begin(self, process: EngineProcess) -> asyncio.Future[Ready]:
        """Start the engine in a process; the future that is returned has a result when the model is loaded."""
        self._loop = asyncio.get_running_loop()
        self._first: asyncio.Future[Ready] = self._loop.create_future()
        self._begun = True
        self._run_in(process)
        return self._first

    @property
    def is_able(self) -> bool:
        """True if requests are taken, as far as one can tell at this moment."""
        return self.state == "ready" and not self._engine.hung_up

    def _become(self, state: State) -> None:
        self.state = state
        for watcher in self._watchers:
            watcher.became(self.number, state)

    def watch(self, watcher: Watcher) -> None:
        """Tell a watcher of all steps and changes of state from now on."""
        self._watchers.append(watcher)

    @property
    def engines(self) -> tuple[Supervisor]:
        """This engine alone, where several replicas may be."""
        return (self,)

    @property
    def silent_seconds(self) -> float:
        """Seconds since the engine last said anything, or since requests wait for it; 0 while none does."""
        return self._loop.time() - self._heard if self._sinks else 0.0

    @property
    def resolved(self) -> Resolved:
        return self.ready.resolved

    @property
    def pid(self) -> int:
        return self._engine.process.pid

    @property
    def retry_after(self) -> int:
        """Seconds after which asking again makes sense while the engine is away."""
        return round(self._pause) + 1

    def open(self, requests: Sequence[Request]) -> Stream[Any]:
        """Submit requests; what their engine makes of them, tokens or rows, comes through the stream.

        Raises EngineDead while there is no engine.
        """
        stream: Stream[Any] = Stream([request.id for request in requests], self.forget)
        self.submit(requests, stream)
        return stream

    def submit(self, requests: Sequence[Request], sink: Sink) -> None:
        """Submit requests; their tokens go to the sink until `forget` is called. Raises EngineDead if none is there."""
        self.check()
        if not self._sinks:
            self._heard = self._loop.time()
        for request in requests:
            self._sinks[request.id] = sink
            self._engine.submit(request)

    def check(self) -> None:
        """Raise EngineDead unless requests are taken."""
        if self.state != "ready":
            raise EngineDead(f"{self._name} is {self.state}: send the request again in {self.retry_after} seconds.")

    async def reset(self, cache: Literal["prefix", "tiles"]) -> bool:
        """Empty a cache of the engine; return whether all of it is empty now. Raises EngineDead."""
        self.check()
        done: asyncio.Future[bool] = self._loop.create_future()
        self._resets.append(done)
        self._engine.send(ResetCache(cache))
        return await done

    async def close(self) -> None:
        """End the engine, and every stream that is left."""
        self._become("closed")
        self.end_streams(EngineDead("The server is shutting down: send the request to another one."))
        if self._begun:
            await self._engine.close()

    def discard(self) -> None:
        """End the engine at once, as nobody will ask it; watchers and streams are not told."""
        self.state = "closed"
        if self._begun:
            self._engine.kill()

    def _run_in(self, process: EngineProcess) -> None:
        self._tiles = process.tiles
        self._engine = RemoteEngine(process, self._launch, self._loop, self._take, self._take_end)

    def _take(self, message: FromEngine) -> None:
        self._heard = self._loop.time()
        if isinstance(message, Ready):
            self._pause = _FIRST_PAUSE
            self._become("ready")
            if not self._first.done():
                self.ready = message
                self._first.set_result(message)
        elif isinstance(message, CannotStart):
            self._fail(message.error)
        elif isinstance(message, Ends):
            self._reason = message.error
        elif isinstance(message, WasReset):
            if not (waiting := self._resets.popleft()).done():
                waiting.set_result(message.done)
        else:
            self._deliver(message)

    def _deliver(self, outbox: Outbox) -> None:
        self.load, self.counters = outbox.load, outbox.counters
        for refused in outbox.refused:
            if sink := self._sinks.get(refused.request_id):
                sink.fail(refused.error)
        for delta in outbox.deltas:
            if sink := self._sinks.get(delta.request_id):
                sink.put(delta)
        # Streams that got something are woken before this, as nobody waits for figures.
        self._loop.call_soon(self._tell, outbox)

    def _tell(self, outbox: Outbox) -> None:
        for watcher in self._watchers:
            watcher.took(self.number, outbox)

    def _take_end(self) -> None:
        if self.state in ("closed", "failed"):
            return
        how = self._how_it_ended()
        logger.error("%s's process %s; %d requests are lost.", self._name, how, len(self._sinks))
        if not self._first.done():
            self._fail(EngineDead(f"{self._name}'s process {how} while it was starting."))
            return
        self.load = EngineLoad(0, 0, 0.0)
        self.end_streams(
            EngineDead(f"{self._name}'s process {how}: send the request again in {self.retry_after} seconds.")
        )
        self._plan_restart()

    def _plan_restart(self) -> None:
        """Start the engine again after a pause, unless it has died too often."""
        if self._rule.is_broken_by(self._deaths, self._loop.time()):
            window = self._rule.window
            logger.error("%s has died %d times in %g seconds and is given up.", self._name, len(self._deaths), window)
            self._become("failed")
            return
        self._become("restarting")
        logger.warning("%s is started again in %.0f seconds.", self._name, self._pause)
        self._loop.call_later(self._pause, self._restart)

    def _how_it_ended(self) -> str:
        reason, self._reason = self._reason, None
        if reason is not None:
            return f"ended ({str(reason).rstrip('.')})"
        status = self._engine.process.exit_status
        return f"was ended by signal {-status}" if status is not None and status < 0 else f"ended with status {status}"

    def _restart(self) -> None:
        if self.state == "restarting":
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            try:
                process = EngineProcess(self.number, self._tiles)
            except OSError as error:  # no memory or no descriptors left, which may be what the engine died of
                logger.error("%s's process cannot be started: %s", self._name, error)
                self._plan_restart()
            else:
                self._run_in(process)

    def _fail(self, error: TilewiseError) -> None:
        """Take the error of a start. The first start decides whether there is a server; later ones are tried again."""
        if not self._first.done():
            self._become("failed")
            self._first.set_exception(error)
        else:
            logger.error("%s cannot be started again: %s", self._name, error)

    def end_streams(self, error: TilewiseError) -> None:
        """Tell all that wait for requests or resets why nothing more will come."""
        for sink in set(self._sinks.values()):
            sink.fail(error)
        self._sinks.clear()
        for waiting in self._resets:
            if not waiting.done():
                waiting.set_exception(error)
        self._resets.clear()

    def forget(self, request_ids: Sequence[str], unfinished: tuple[str, ...]) -> None:
        """Drop requests that nobody waits for any more, and abort those of them that are unfinished."""
        for request_id in request_ids:
            self._sinks.pop(request_id, None)
        if unfinished and self.state == "ready":
            self._engine.send(Abort(unfinished))
