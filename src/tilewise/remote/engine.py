"""RemoteEngine: one engine process, from launch to end; EngineProcess: that process; Stream: what comes of requests.

An event loop never waits for the process. Messages from it are read when they are there, as on any connection. Messages
to it are sent as far as the pipe has space; a thread sends the rest, and all messages that follow until it is done.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from queue import Queue
from threading import Thread
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

from tilewise.engine.encode_core import EncodedDelta
from tilewise.errors import TilewiseError
from tilewise.host import short_waits, without_interrupts
from tilewise.inputs.media.tile_memory import TileFile
from tilewise.remote.wire import Close, FromEngine, Launch, Returned, Submit, ToEngine, framed, pipe
from tilewise.types import Request, SequenceDelta


class Sink(Protocol):
    """A receiver of what becomes of requests."""

    def put(self, delta: Any) -> None:
        """Take a token of one of the requests, or whatever else their engine makes of them."""

    def fail(self, error: TilewiseError) -> None:
        """Take the reason why nothing more comes of some of the requests, or of all."""


OnClose = Callable[[Sequence[str], tuple[str, ...]], None]
"""Called with (all request ids, those that have not ended)."""
Item = TypeVar("Item", SequenceDelta, EncodedDelta)


class Stream(Generic[Item]):
    """An asynchronous iterator over lists of tokens of requests; leaving its context aborts whatever has not ended."""

    def __init__(
        self, request_ids: Sequence[str], on_close: OnClose, engines: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        """`engines` has the number of each request's engine, where there are several."""
        self._engines = engines
        self._request_ids = request_ids
        self._on_close = on_close
        self._unfinished = set(request_ids)
        self._waiting: list[Item] = []
        self._error: TilewiseError | None = None
        self._something = asyncio.Event()

    def engine_of(self, request_id: str) -> int:
        """Return the number of the engine that has one of the requests."""
        return self._engines.get(request_id, 0)

    def put(self, delta: Item) -> None:
        if delta.finish_reason is not None:
            self._unfinished.discard(delta.request_id)
        self._waiting.append(delta)
        self._something.set()

    def fail(self, error: TilewiseError) -> None:
        self._error = error
        self._something.set()

    def abort(self, request_id: str) -> None:
        """End one of the requests, which needs no more tokens."""
        if request_id in self._unfinished:
            self._unfinished.discard(request_id)
            self._on_close([request_id], (request_id,))

    def __aiter__(self) -> Stream[Item]:
        return self

    async def __anext__(self) -> list[Item]:
        """Return all that has come since the last time. Raises what ended the requests."""
        while not self._waiting:
            if self._error is not None:
                raise self._error
            if not self._unfinished:
                raise StopAsyncIteration
            self._something.clear()
            await self._something.wait()
        found, self._waiting = self._waiting, []
        return found

    async def __aenter__(self) -> Stream[Item]:
        return self

    async def __aexit__(self, *_: object) -> None:
        unfinished, self._unfinished = tuple(self._unfinished), set()
        self._on_close(self._request_ids, unfinished)


_PATIENCE = 10.0  # seconds from being told to end until being ended


class EngineProcess:
    """A process for an engine, which loads its libraries at once. It ends when this process does, however that ends."""

    def __init__(self, number: int = 0, tiles: TileFile | None = None) -> None:
        """Start the process. `number` is that of the engine among several, for the log; `tiles` is what they share."""
        self.pipe, theirs = pipe()
        self.tiles = tiles or TileFile()
        level = logging.getLevelName(logging.getLogger("tilewise").getEffectiveLevel())
        # A new interpreter, as a fork would inherit threads and what they hold; it finds modules where this one does.
        command = [sys.executable, "-P", "-m", "tilewise.remote.begin", f"{theirs.fileno()}", level, f"{number}"]
        command.append(f"{self.tiles.descriptor}")
        path = os.pathsep.join(sys.path)
        with theirs, without_interrupts():  # the engine's end is its own, so that its death is the end of the pipe
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno(), self.tiles.descriptor],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **short_waits(os.environ), "PYTHONPATH": path},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """Exit status of the process; None while it lives; negative: the signal that ended it."""
        return self._process.poll()

    def wait(self) -> None:
        """Give the process time to end, and kill it if it does not. Returns when it is gone."""
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class RemoteEngine:
    """One engine process, from launch until it ends; the Supervisor makes a new one after each death.

    In `loop`, `on_message` is called with each message, `on_end` when no more will come.
    """

    def __init__(
        self,
        process: EngineProcess,
        launch: Launch,
        loop: asyncio.AbstractEventLoop,
        on_message: Callable[[FromEngine], None],
        on_end: Callable[[], None],
    ) -> None:
        self.process, self._pipe = process, process.pipe
        self._loop, self._on_message, self._on_end = loop, on_message, on_end
        self._left: Queue[memoryview | None] = Queue()
        self._lent: dict[int, Request] = {}
        """Requests whose tiles the process reads in shared memory, by the numbers of their loans.

        A loan begins when such a request is sent. It holds the request, whose tiles keep their cells, so that no other
        picture is written there. It ends when the process says that none of the tiles is in use any more, or is gone.
        """
        self._loans = itertools.count()
        Thread(target=self._send_left, name="tilewise-engine-writer", daemon=True).start()
        loop.add_reader(self._pipe.fileno(), self._read)
        self.send(launch)

    @property
    def hung_up(self) -> bool:
        """True once nothing more comes; the process has an exit status some moments later."""
        return self._pipe.closed

    def submit(self, request: Request) -> None:
        # Its grammar is compiled again where it is needed: a parser's state cannot travel.
        message = Submit.of(request.with_(grammar=None), next(self._loans))
        if message.loan is not None and not self._pipe.closed:
            self._lent[message.loan] = request
        self.send(message)

    def kill(self) -> None:
        """Kill the process at once, whatever it does."""
        self._hang_up()
        self.process.kill()

    async def close(self) -> None:
        """Tell the process to end, and kill it if it does not. Returns when it is gone."""
        self.send(Close())
        await asyncio.to_thread(self.process.wait)
        self._hang_up()

    def _read(self) -> None:
        try:
            for message in self._pipe.arrived():
                if isinstance(message, Returned):
                    for loan in message.loans:
                        del self._lent[loan]
                else:
                    self._on_message(message)
        except EOFError:
            self._hang_up()
            Thread(target=self._wait_for_end, name="tilewise-engine-end", daemon=True).start()

    def _hang_up(self) -> None:
        if not self._pipe.closed:
            self._loop.remove_reader(self._pipe.fileno())
            self._pipe.close()
            self._left.put(None)
            self._lent.clear()

    def _wait_for_end(self) -> None:
        """Call `on_end` once the process has an exit status, some moments after its end of the pipe has closed."""
        self.process.wait()
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._on_end)

    def send(self, message: ToEngine) -> None:
        """Send a message, as much of it as the pipe takes now; a thread sends the rest."""
        data = memoryview(framed(message))
        # As long as the thread has something to send, also the piece that it sends right now, nothing may overtake it.
        try:
            sent = 0 if self._left.unfinished_tasks else self._pipe.send_some(data)
        except OSError:
            return  # it has died, which the reader notices
        if sent < len(data):
            self._left.put(data[sent:])

    def _send_left(self) -> None:
        while (data := self._left.get()) is not None:
            try:
                self._pipe.send_rest(data)
            except OSError:
                return
            self._left.task_done()
