"""EngineProcess: a process that gets ready to run an engine, the pipe to it, and its part of the memory."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig
from tilewise.host import Memory, available_memory, short_waits
from tilewise.remote.wire import pipe
from tilewise.units import in_bytes

_PROCESS = 256 * 2**20
"""Bytes that a process with torch takes before it has a model."""


def memory_part(config: EngineConfig) -> Memory | None:
    """Return each replica's part of the memory that this machine has now; None = the only one measures for itself.

    Memory is measured once, for all replicas and all their lives: replicas that start side by side, or again, would
    each find something else. Raises InvalidConfig where not even their libraries fit.
    """
    replicas = config.data_parallel_size
    if replicas == 1:
        return None
    memory = available_memory()
    each = 1 if config.distributed_executor_backend == "ray" else config.layout.ranks  # Ray's are on nodes of their own
    processes = replicas * each
    if processes * _PROCESS > memory.free:
        most = max(1, memory.free // (_PROCESS * each))
        raise InvalidConfig(
            f"data_parallel_size={replicas} is not possible: {processes} processes take {in_bytes(_PROCESS)} each "
            f"before they have a model, and {in_bytes(memory.free)} are free: use {most} at most."
        )
    return Memory(memory.total // replicas, memory.free // replicas)


_PATIENCE = 10.0  # seconds from being told to end until being ended


class EngineProcess:
    """A process for an engine, which loads its libraries at once. It ends when this process does, however that ends."""

    def __init__(self, number: int = 0) -> None:
        """Start the process. `number` is that of the engine among several, for the log."""
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
