"""A part's process: it writes what it finds line by line, so that nothing is lost when it dies."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmarks.gpu.items import DEVICE_LOST, run_items
from benchmarks.gpu.parts import GRACE, PARTS
from benchmarks.gpu.rows import Note, Notebook
from benchmarks.gpu.setup import Setup

_TRIES = 4
"""Processes of one part, where each but the last lost its device."""
GIVEN_UP = -1000
"""In the place of a status."""
_LAST_LINES = 12
"""Of the log of a process that failed, which are kept."""


def run_part(name: str, setup: Setup) -> int:
    """In the part's own process. What the engine logs goes to the standard error, which is a file then."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if setup.tiny:
        torch.set_num_threads(1)  # sizes are so small that threads would only wait for each other

    def say(text: str) -> None:
        print(f"[{setup.left:4.0f} s left of {name}] {text}", flush=True)

    return run_items(PARTS[name].items(setup), setup, Notebook(setup.folder / f"{name}.jsonl"), say)


@dataclass(frozen=True)
class Ended:
    """How a part went."""

    state: str
    """done, failed, stopped"""
    error: str | None = None


def start_part(name: str, setup: Setup) -> Ended:
    """Run a part in a process of its own, and once more for what is left where that loses its device."""
    book, log = Notebook(setup.folder / f"{name}.jsonl"), setup.folder / f"{name}.log"
    for path in (book.path, log):
        path.unlink(missing_ok=True)
    ended, lost = Ended("stopped", "its time was up"), set[str | None]()
    for _ in range(_TRIES):
        status = _process(name, setup, log)
        if status == 0:
            return Ended("done")
        where = _open_item(book)
        if status is None:
            return Ended("stopped", f"its time was up, in {where or 'its start'}")
        ended = Ended("failed", f"status {status} in {where or 'its start'}: {_tail(log)}")
        if where and status < 0:
            book.write(Note(where, f"{_why(status)}: {_tail(log)}", failed=True))
        if (status != DEVICE_LOST and status > 0) or (where and where in lost) or setup.left < 5:
            break  # else what is left may go well in another process
        lost.add(where)
    return ended


def _process(name: str, setup: Setup, log: Path) -> int | None:
    """The status; None = it was ended as its time was up."""
    words = ["--part", name, "--device", setup.device, "--folder", str(setup.folder), "--seed", str(setup.seed)]
    words += ["--ends", str(setup.ends), *(["--tiny"] if setup.tiny else [])]
    with log.open("ab") as errors:
        child = subprocess.Popen([sys.executable, "-m", "benchmarks.gpu", *words], stderr=errors)
        try:
            return watched(child, setup, PARTS[name].patience, setup.folder / f"{name}.jsonl")
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()


def watched(child: subprocess.Popen[bytes], setup: Setup, patience: int | None, book: Path) -> int | None:
    """The status of a process as soon as it ends; GIVEN_UP if it writes nothing for longer than `patience`."""
    begun, deadline = time.time(), max(time.time() + 1, setup.ends + GRACE)
    while time.time() < deadline:
        with suppress(subprocess.TimeoutExpired):
            return child.wait(timeout=0.2)
        last = max(begun, book.stat().st_mtime if book.exists() else 0)
        if patience is not None and time.time() > last + patience:
            return GIVEN_UP
    return None


def _why(status: int) -> str:
    return "it took too long" if status == GIVEN_UP else f"its process was ended by signal {-status}"


def _open_item(book: Notebook) -> str | None:
    """The item that the process did not come back from."""
    begun, ended = book.items("begun"), set(book.items("ended"))
    return begun[-1] if begun and begun[-1] not in ended else None


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return "\n".join(lines[-_LAST_LINES:])
