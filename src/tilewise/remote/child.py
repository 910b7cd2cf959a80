"""EngineProcess: a process that gets ready to run an engine, and the pipe to it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

from tilewise.remote.pipe import pipe
from tilewise.waiting import short_waits

_PATIENCE = 10.0  # seconds from being told to end until being ended


class EngineProcess:
    """Starts at once and loads its libraries; it ends when this process does, however that ended."""

    def __init__(self, number: int = 0) -> None:
        """`number` is that of the engine among several, for the log."""
        self.pipe, theirs = pipe()
        level = logging.getLevelName(logging.getLogger("tilewise").getEffectiveLevel())
        # A new interpreter, as a fork would inherit threads and what they hold; it finds modules where this one does.
        command = [sys.executable, "-P", "-m", "tilewise.remote.begin", f"{theirs.fileno()}", level, f"{number}"]
        path = os.pathsep.join(sys.path)
        with theirs:  # the engine's end is its own, so that its death is the end of the pipe
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **short_waits(os.environ), "PYTHONPATH": path},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """None while it lives; negative: the signal that ended it."""
        return self._process.poll()

    def wait(self) -> None:
        """Give it time to end, and end it if it does not. Returns when it is gone."""
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
