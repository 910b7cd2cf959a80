"""RemoteEngine: one life of an engine's process, as the process that feeds it sees it.

An event loop never waits for it. What comes is read when it is there, as on any connection. What goes out is sent as
far as the other side has room; a thread sends the rest, and what comes behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from queue import Queue
from threading import Thread
from typing import Literal

from tilewise.remote.child import EngineProcess
from tilewise.remote.pipe import framed
from tilewise.remote.wire import Abort, Close, FromEngine, Launch, Reset, Submit, ToEngine
from tilewise.types import Request


class RemoteEngine:
    """In `loop`, `on_message` is called with all that comes, and `on_end` when nothing more will."""

    def __init__(
        self,
        process: EngineProcess,
        launch: Launch,
        loop: asyncio.AbstractEventLoop,
        on_message: Callable[[FromEngine], None],
        on_end: Callable[[], None],
    ) -> None:
        self._process, self._pipe = process, process.pipe
        self._loop, self._on_message, self._on_end = loop, on_message, on_end
        self._left: Queue[memoryview | None] = Queue()
        Thread(target=self._send_left, name="tilewise-engine-writer", daemon=True).start()
        loop.add_reader(self._pipe.fileno(), self._read)
        self._send(launch)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def hung_up(self) -> bool:
        """Nothing comes any more, and nothing is read; it has a status some moments later."""
        return self._pipe.closed

    @property
    def exit_status(self) -> int | None:
        """None while it lives; negative: the signal that ended it."""
        return self._process.exit_status

    def submit(self, request: Request) -> None:
        # Its grammar is compiled again where it is needed: a parser's state cannot travel.
        self._send(Submit(request.with_(grammar=None)))

    def abort(self, request_ids: tuple[str, ...]) -> None:
        self._send(Abort(request_ids))

    def reset(self, cache: Literal["prefix", "tiles"]) -> None:
        self._send(Reset(cache))

    def kill(self) -> None:
        """End it at once, whatever it does."""
        self._hang_up()
        self._process.kill()

    async def close(self) -> None:
        """Tell it to end, and end it if it does not listen. Returns when it is gone."""
        self._send(Close())
        await asyncio.to_thread(self._process.wait)
        self._hang_up()

    def _read(self) -> None:
        try:
            for message in self._pipe.arrived():
                self._on_message(message)
        except EOFError:
            self._hang_up()
            Thread(target=self._wait_for_end, name="tilewise-engine-end", daemon=True).start()

    def _hang_up(self) -> None:
        if not self._pipe.closed:
            self._loop.remove_reader(self._pipe.fileno())
            self._pipe.close()
            self._left.put(None)

    def _wait_for_end(self) -> None:
        """The pipe may close some moments before the process has a status."""
        self._process.wait()
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._on_end)

    def _send(self, message: ToEngine) -> None:
        data = memoryview(framed(message))
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
