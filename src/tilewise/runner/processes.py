"""Processes that compute for this one: interpreters that are given a task, and end when this one has ended."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from tilewise.waiting import short_waits

_PATIENCE = 10.0
"""Seconds that a process is given to end by itself."""


def start_module(module: str, task: object) -> subprocess.Popen[bytes]:
    """A new interpreter that runs a module and finds others where this one does; the task is on its standard input."""
    path = os.pathsep.join(sys.path)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **short_waits(os.environ), "PYTHONPATH": path},
    )
    assert process.stdin is not None
    pickle.dump(task, process.stdin)
    process.stdin.flush()
    return process


def task_of_this() -> Any:
    """In such a process, its task. Ctrl-C goes to all processes of a terminal, and is left to the one that began."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return pickle.load(sys.stdin.buffer)


def end_with_the_first() -> None:
    """End as soon as standard input is closed, which it is when the process that began has ended, however that was."""

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=watch, name="tilewise-first-process", daemon=True).start()


def end_all(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Close their standard input, and end those that do not end by themselves."""
    for process in processes:
        for end in filter(None, (process.stdin, process.stdout)):
            end.close()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
