"""Processes by number and birth: a number is given to another process one day, at the latest after a reboot."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

_PROC = Path("/proc")
_PAUSE = 0.05  # seconds

Ending = Literal["had ended", "ended", "was killed"]


def birth_of(pid: int) -> str | None:
    """When a process was born, as text to compare; None if there is none, or only what its parent has not read."""
    return _birth_in_proc(pid) if (_PROC / "self" / "stat").exists() else _birth_by_ps(pid)


def _birth_in_proc(pid: int) -> str | None:
    """Ticks since the boot, and which boot."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the name in brackets may hold anything; the state is behind it
    boot = (_PROC / "sys" / "kernel" / "random" / "boot_id").read_text(encoding="ascii").strip()
    return None if fields[0] in "ZX" else f"{boot} {fields[19]}"


def _birth_by_ps(pid: int) -> str | None:
    found = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = found.stdout.strip().partition(" ")
    return None if not started or state.startswith("Z") else started.strip()


def end(pid: int, birth: str, patience: float, tell: Callable[[str], None] = lambda _: None) -> Ending:
    """SIGTERM, and SIGKILL to the group that it leads if it is still there after `patience` seconds."""
    if birth_of(pid) != birth:
        return "had ended"
    _send(os.kill, pid, signal.SIGTERM)
    if _wait_for_end(pid, birth, patience):
        return "ended"
    tell(f"It is still there after {patience:g} seconds: SIGKILL.")
    _send(os.killpg, pid, signal.SIGKILL)  # a service leads its own group
    _wait_for_end(pid, birth, patience=10)
    return "was killed"


def _send(kill: Callable[[int, int], None], pid: int, what: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended by itself just now
        kill(pid, what)


def _wait_for_end(pid: int, birth: str, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while birth_of(pid) == birth:
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE)
    return True
