"""The engine's process: it loads the model, then steps while there is work, and says after each step what came of it.

It ends with the process that feeds it, however that ended: the pipe is closed then.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from socket import socket
from typing import TYPE_CHECKING

from tilewise.config import EngineConfig
from tilewise.engine.core import EngineCore
from tilewise.errors import TilewiseError
from tilewise.logs import set_up_logs
from tilewise.remote.inbox import Inbox
from tilewise.remote.pipe import Pipe
from tilewise.remote.wire import Abort, CannotStart, Close, Outbox, Ready, Refused, Submit, ToEngine

if TYPE_CHECKING:
    from tilewise.weights.checkpoint import Checkpoint

logger = logging.getLogger("tilewise")


Build = Callable[["Launch"], tuple[EngineCore, Ready]]


@dataclass(frozen=True, slots=True)
class Launch:
    """All that an engine is started from."""

    config: EngineConfig
    model: Checkpoint
    draft: Checkpoint | None
    image_context_id: int
    end_ids: frozenset[int]
    """End tokens of the model, where structured answers may end."""
    build: Build | None = None
    """Makes the engine; None: `build` below. A benchmark has one without a model."""


def main(end: socket, launch: Launch, log_level: str) -> None:
    """Run an engine until it is told to end. The exit status is 0 then, and 1 if it could not start."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes of a terminal: the other one decides
    set_up_logs("EngineCore_DP0", log_level)
    pipe = Pipe(end)
    try:
        core, ready = (launch.build or build)(launch)
    except TilewiseError as error:
        pipe.send(CannotStart(error))
        raise SystemExit(1) from None
    inbox = Inbox(pipe, launch.model.folder.path, launch.end_ids)
    pipe.send(ready)
    try:
        run(pipe, core, inbox)
    except (BrokenPipeError, ConnectionResetError):
        pass  # nobody is left to answer
    finally:
        core.close()


def build(launch: Launch) -> tuple[EngineCore, Ready]:
    """Raises the errors of `build_runner`."""
    started = time.perf_counter()
    from tilewise.runner.build import build_runner  # torch takes a second to load, and only this process needs it

    imported = time.perf_counter()
    runner, resolved = build_runner(launch.config, launch.model, launch.image_context_id, launch.draft)
    seconds = {"imports": imported - started, "model": time.perf_counter() - imported}
    return EngineCore(runner, resolved.limits, resolved.overlap), Ready(resolved, seconds)


def run(pipe: Pipe, core: EngineCore, inbox: Inbox) -> None:
    """Step while there is work, wait while there is none."""
    while True:
        refused: list[Refused] = []
        for message in inbox.take(wait=not core.has_unfinished):
            if isinstance(message, Close):
                return
            refused += _apply(message, core)
        deltas = core.step() if core.has_unfinished else []
        if deltas or refused or not core.has_unfinished:
            pipe.send(Outbox(tuple(deltas), core.counters, core.load, tuple(refused)))


def _apply(message: ToEngine | Refused, core: EngineCore) -> list[Refused]:
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
