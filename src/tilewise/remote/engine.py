"""RemoteEngine: one life of an engine's process, as the process that feeds it sees it.

Messages are read and written by threads of their own, so an event loop never waits for a pipe.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread

from tilewise.remote.process import Launch, main
from tilewise.remote.wire import Abort, Close, FromEngine, Submit, ToEngine
from tilewise.types import Request

_PATIENCE = 10.0  # seconds from being told to end until being ended


class RemoteEngine:
    """Starts at once; `on_message` is called from a thread with all that comes, `on_end` when nothing more will."""

    def __init__(self, launch: Launch, on_message: Callable[[FromEngine], None], on_end: Callable[[], None]) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit threads and what they hold
        self._pipe, theirs = context.Pipe()
        level = logging.getLevelName(logging.getLogger("tilewise").getEffectiveLevel())
        self._process = context.Process(target=main, args=(theirs, launch, level), name="tilewise-engine", daemon=True)
        self._process.start()
        theirs.close()  # the engine's end is its own, so that its death is the end of the pipe
        self._on_message, self._on_end = on_message, on_end
        self._outgoing: SimpleQueue[ToEngine | None] = SimpleQueue()
        for work, name in ((self._read, "reader"), (self._write, "writer")):
            Thread(target=work, name=f"tilewise-engine-{name}", daemon=True).start()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """None while it lives; negative: the signal that ended it."""
        return self._process.exitcode

    def submit(self, request: Request) -> None:
        # Its grammar is compiled again where it is needed: a parser's state cannot travel.
        self._outgoing.put(Submit(request.with_(grammar=None)))

    def abort(self, request_ids: tuple[str, ...]) -> None:
        self._outgoing.put(Abort(request_ids))

    def close(self) -> None:
        """Tell it to end, and end it if it does not listen. Returns when it is gone."""
        self._outgoing.put(Close())
        self._outgoing.put(None)
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _read(self) -> None:
        try:
            while True:
                self._on_message(self._pipe.recv())
        except (EOFError, OSError):
            pass
        self._process.join(_PATIENCE)
        self._on_end()

    def _write(self) -> None:
        while (message := self._outgoing.get()) is not None:
            try:
                self._pipe.send(message)
            except OSError:
                return  # it has died, which the reader notices
