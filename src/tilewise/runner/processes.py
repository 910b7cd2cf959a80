"""Processes that compute for this one: interpreters that are given a task, and end when this one has ended."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tilewise.host import short_waits, without_interrupts

_PATIENCE = 10.0
"""Seconds that a process is given to end by itself."""


def start_module(module: str, task: object) -> subprocess.Popen[bytes]:
    """Start an interpreter that runs a module and finds others where this one does; its standard input has the task."""
    path = os.pathsep.join(sys.path)
    with without_interrupts():
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
    """Return the task of a process that was started so. Ctrl-C, which all processes get, is left to the first one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return pickle.load(sys.stdin.buffer)


def end_with_the_first() -> None:
    """End this process as soon as its standard input is closed, as it is when the first process has ended, however."""

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=watch, name="tilewise-first-process", daemon=True).start()


def cores_of_each(processes: int) -> list[list[int]]:
    """Return the cores that this process may use, in equal parts of neighbours; empty if there are fewer cores."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    each = len(cores) // processes
    return [cores[part * each : (part + 1) * each] for part in range(processes)] if each else []


def bind_to_cores(cores: Iterable[int]) -> None:
    """Run all threads of this process, and those that they start, on these cores alone."""
    for thread in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(int(thread.name), cores)


def end_all(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Close the standard input of processes, and kill those that do not end by themselves."""
    for process in processes:
        for end in filter(None, (process.stdin, process.stdout)):
            with suppress(BrokenPipeError):  # of what was never sent to one that has died
                end.close()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
