"""The engine's process: it loads the model, then steps while there is work, and says after each step what came of it.

It ends with the process that feeds it, however that ended: the pipe is closed then.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socket import socket

from tilewise.engine.core import EngineCore
from tilewise.errors import RankDied, TilewiseError
from tilewise.logs import set_up_logs
from tilewise.remote.inbox import Inbox
from tilewise.remote.pipe import Pipe
from tilewise.remote.wire import (
    Abort,
    CannotStart,
    Close,
    Core,
    Ends,
    Launch,
    Outbox,
    Ready,
    Refused,
    Reset,
    Submit,
    ToEngine,
    WasReset,
)

logger = logging.getLogger("tilewise")

_LOOK = 250
"""Milliseconds between looks at whether there is still somebody to load a model for."""

_CHECKED = 1.0
"""Seconds between looks at whether all processes are there that compute for an engine without work."""


def main(end: socket, log_level: str, number: str) -> None:
    """Run an engine until it is told to end. The exit status is 0 then, and 1 if it could not start.

    `number` is the engine's among several.
    """
    set_up_logs(f"EngineCore_DP{number}", log_level)
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
    inbox = Inbox(pipe, launch.model.tokenizer, launch.end_ids)
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
    """Loading may take minutes, in which nobody reads what comes: that nobody is at the other end is noticed here."""
    done, closed = threading.Event(), select.poll()
    closed.register(end, 0)  # of its end one is told in any case

    def watch() -> None:
        while not done.is_set():
            if closed.poll(_LOOK):
                os._exit(1)

    threading.Thread(target=watch, name="tilewise-feeder", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def build(launch: Launch) -> tuple[Core, Ready]:
    """Raises the errors of `build_runner`."""
    started = time.perf_counter()
    from tilewise.runner.build import build_runner  # torch takes a second to load, and only this process needs it

    imported = time.perf_counter()
    own = (launch.part, launch.first_device)
    runner, resolved = build_runner(launch.config, launch.model, launch.image_context_id, launch.draft, *own)
    seconds = {"imports": imported - started, "model": time.perf_counter() - imported}
    return EngineCore(runner, resolved.limits, resolved.overlap, seed=launch.config.seed), Ready(resolved, seconds)


def run(pipe: Pipe, core: Core, inbox: Inbox) -> None:
    """Step while there is work, wait while there is none. Raises RankDied."""
    while True:
        refused: list[Refused] = []
        messages = inbox.take(0.0 if core.has_unfinished else _CHECKED)
        if not messages and not core.has_unfinished:
            core.check()
            continue
        for message in messages:
            if isinstance(message, Close):
                return
            if isinstance(message, Reset):
                pipe.send(WasReset(core.reset(message.cache)))
            refused += _apply(message, core)
        deltas = core.step() if core.has_unfinished else []
        if deltas or refused or not core.has_unfinished:
            pipe.send(Outbox(tuple(deltas), core.counters, core.load, tuple(refused)))


def _apply(message: ToEngine | Refused, core: Core) -> list[Refused]:
    if isinstance(message, Refused):
        return [message]
    if isinstance(message, Submit):
        try:
            core.submit(message.request)
        except TilewiseError as error:
            return [Refused(message.request.id, error)]
    if isinstance(message, Abort):
        for request_id in message.request_ids:
            core.abort(request_id)
    return []
