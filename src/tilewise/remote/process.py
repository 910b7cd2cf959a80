"""The engine's process: it loads the model, then steps while there is work, and reports after each step.

It ends with the process that feeds it, however that ended: the pipe is closed then.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from queue import Empty, SimpleQueue
from socket import socket
from threading import Thread
from typing import TYPE_CHECKING

from tilewise.console import set_up_logs
from tilewise.engine.core import EngineCore
from tilewise.engine.encode_core import EncodeCore
from tilewise.errors import EngineStuck, RankDied, TilewiseError
from tilewise.host import cache_bytes, offer_to_be_killed
from tilewise.inputs.media.tile_memory import TileMemory
from tilewise.remote.wire import (
    Abort,
    CannotStart,
    Close,
    Core,
    Ends,
    Launch,
    Outbox,
    Pipe,
    Ready,
    RequestRefused,
    ResetCache,
    Returned,
    Submit,
    ToEngine,
    WasReset,
)

if TYPE_CHECKING:
    from tilewise.inputs.grammar import Grammars

_KILLED_SOONER = 200
"""Points of 1000 by which an engine is killed sooner than the server when memory ends: it is back in seconds."""


class Inbox:
    """The messages to the engine. One thread reads them, another compiles the grammars of structured answers.

    A request and its abort keep their order: the abort of a request whose grammar is being compiled waits behind it in
    the queue of the compiling thread.
    """

    def __init__(self, pipe: Pipe, folder: Path, end_ids: frozenset[int], memory: TileMemory | None = None) -> None:
        """Start to read. `folder` has the tokenizer, which is read when the first grammar comes.

        Tiles that requests only refer to are in `memory`.
        """
        self._pipe = pipe
        self._memory = memory
        self._returned: deque[int] = deque()
        self._folder = folder
        self._end_ids = end_ids
        self._messages: SimpleQueue[ToEngine | RequestRefused] = SimpleQueue()
        self._compiling: dict[str, None] = {}
        self._compiler = ThreadPoolExecutor(1, "tilewise-grammars")
        Thread(target=self._read, name="tilewise-inbox", daemon=True).start()

    def take(self, seconds: float) -> list[ToEngine | RequestRefused]:
        """Return all messages that are there; if there are none, wait for one, so many seconds at most."""
        found: list[ToEngine | RequestRefused] = []
        while True:
            try:
                found.append(self._messages.get(timeout=0.0 if found else seconds))
            except Empty:
                return found

    def returned(self) -> Returned | None:
        """Return the loans whose tiles are not in use any more, and were not returned before."""
        loans = tuple(self._returned.popleft() for _ in range(len(self._returned)))
        return Returned(loans) if loans else None

    def _read(self) -> None:
        try:
            while True:
                self._sort(self._pipe.receive())
        except (EOFError, OSError):
            self._messages.put(Close())

    def _sort(self, message: ToEngine) -> None:
        if isinstance(message, Submit):
            message = message.opened(self._memory, self._returned)
        if isinstance(message, Submit) and message.request.sampling.structured_outputs is not None:
            self._compiling[message.request.id] = None
            self._compiler.submit(self._compile, message)
        elif isinstance(message, Abort) and any(name in self._compiling for name in message.request_ids):
            self._compiler.submit(self._messages.put, message)
        else:
            self._messages.put(message)

    def _compile(self, message: Submit) -> None:
        request = message.request
        try:
            assert request.sampling.structured_outputs is not None
            grammar = self._grammars.compile(request.sampling.structured_outputs)
            self._messages.put(Submit(request.with_(grammar=grammar)))
        except BaseException as error:  # a panic of the library, too: nobody else would tell who waits
            known = error if isinstance(error, TilewiseError) else EngineStuck(f"The grammar failed: {error!r:.200}")
            self._messages.put(RequestRefused(request.id, known))
        finally:
            self._compiling.pop(request.id)

    @cached_property
    def _grammars(self) -> Grammars:
        from tilewise.inputs.grammar import Grammars
        from tilewise.inputs.tokenizer import Tokenizer

        return Grammars(Tokenizer.from_folder(self._folder), self._end_ids, checked_before=True)


logger = logging.getLogger("tilewise")

_LOOK = 250
"""Milliseconds between checks, while a model is loaded, that the process that feeds this one is still there."""

_CHECKED = 1.0
"""Seconds between checks of an engine without work that all processes that compute for it are still there."""


def main(end: socket, log_level: str, number: str, tiles: int) -> None:
    """Run an engine until it is told to end. The exit status is 0 then, and 1 if it could not start or lost a rank.

    `number` is the engine's among several; `tiles` is the descriptor of the file of tiles.
    """
    set_up_logs(f"EngineCore_DP{number}", log_level)
    offer_to_be_killed(_KILLED_SOONER)
    pipe = Pipe(end)
    try:
        launch: Launch = pipe.receive()
    except EOFError:
        return  # whoever was about to say found a reason not to
    try:
        with _ended_with(end):
            core, ready = (launch.build or build)(launch)
    except TilewiseError as error:
        pipe.send(CannotStart(error))
        raise SystemExit(1) from None
    gc.freeze()  # libraries and model stay: no step has to wait while garbage is looked for among them
    gc.enable()
    memory = None if launch.tiles is None else TileMemory(tiles, launch.tiles)
    inbox = Inbox(pipe, launch.model.tokenizer, launch.end_ids, memory)
    try:
        pipe.send(ready)
        run(pipe, core, inbox)
    except (BrokenPipeError, ConnectionResetError):
        pass  # nobody is left to answer
    except RankDied as error:
        logger.error("%s", error)
        with suppress(OSError):
            pipe.send(Ends(error))
        raise SystemExit(1) from None
    finally:
        core.close()


@contextmanager
def _ended_with(end: socket) -> Iterator[None]:
    """Exit when the other end closes: loading may take minutes, in which nobody reads the pipe and would notice."""
    done, closed = threading.Event(), select.poll()
    closed.register(end, 0)  # no events are asked for: the end of a connection is reported in any case

    def watch() -> None:
        while not done.is_set():
            if closed.poll(_LOOK):
                os._exit(1)

    threading.Thread(target=watch, name="tilewise-feeder", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def build(launch: Launch) -> tuple[EngineCore, Ready]:
    """Build the engine of a model. Raises the errors of `build_runner`."""
    started = time.perf_counter()
    from tilewise.runner.build import build_runner  # torch takes longer to load than all that a caller can get wrong

    imported = time.perf_counter()
    own = (launch.part, launch.first_device)
    runner, resolved = build_runner(launch.config, launch.model, launch.image_context_id, launch.draft, *own)
    seconds = {"imports": imported - started, "model": time.perf_counter() - imported}
    return EngineCore(runner, resolved.limits, resolved.overlap, seed=launch.config.seed), Ready(resolved, seconds)


def run(pipe: Pipe, core: Core, inbox: Inbox) -> None:
    """Step while there is work, wait while there is none. Raises RankDied."""
    while True:
        messages = inbox.take(0.0 if core.has_unfinished else _CHECKED)
        if returned := inbox.returned():
            pipe.send(returned)
        if not messages and not core.has_unfinished:
            core.check()
            continue
        refused = _take_in(messages, pipe, core)
        del messages  # else a request is held on to, whose tiles are given back when it is gone
        if refused is None:
            return
        deltas = core.step() if core.has_unfinished else []
        if deltas or refused or not core.has_unfinished:
            pipe.send(Outbox(tuple(deltas), core.counters, core.load, tuple(refused)))


def _take_in(messages: list[ToEngine | RequestRefused], pipe: Pipe, core: Core) -> list[RequestRefused] | None:
    """Do what messages say, and return the requests that the engine does not take; None = it is to end."""
    refused: list[RequestRefused] = []
    for message in messages:
        match message:
            case Close():
                return None
            case ResetCache(cache):
                pipe.send(WasReset(core.reset(cache)))
            case RequestRefused():
                refused.append(message)
            case Submit(request):
                try:
                    core.submit(request)
                except TilewiseError as error:
                    refused.append(RequestRefused(request.id, error))
            case Abort(request_ids):
                for request_id in request_ids:
                    core.abort(request_id)
    return refused


def build_encoding(launch: Launch) -> tuple[Core, Ready]:
    """Build an engine that encodes pictures alone. Raises the errors of `build_tower`."""
    started = time.perf_counter()
    from tilewise.runner.tower import build_tower  # as in `process.build`

    imported = time.perf_counter()
    tower, resolved = build_tower(launch.config, launch.model)
    seconds = {"imports": imported - started, "model": time.perf_counter() - imported}
    kept = cache_bytes(launch.config.encoder_cache_gb, "encoded tiles", "encoder_cache_gb")
    return EncodeCore(tower, kept), Ready(resolved, seconds)
