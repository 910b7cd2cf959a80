"""What a peer can be asked to do, and the process that it does it in.

Each peer is a module here with a subclass of `Peer`, run by its own interpreter with `python -m benchmarks.peers.NAME`.
It says what it did in JSON lines on standard output; whatever its libraries print goes to standard error.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.tasks import ONE_ENGINE, ROWS, TASKS, Value
from benchmarks.peers.work import FULL, QUICK, Prompt, Work

ENOUGH = 45.0
"""Seconds after which a task is not measured once more."""


class Lacks(Exception):
    """The peer has no such thing; says why."""


@dataclass(frozen=True)
class Setup:
    form: Path
    """The checkpoint as this peer reads it."""
    precision: str
    threads: int
    streams: int
    """For which there has to be room, of `context` tokens each."""
    context: int


@dataclass(frozen=True)
class Answer:
    """Seconds from the prompts to the first token and to the last, preprocessing included."""

    first: float
    total: float
    prompt_tokens: int | None = None
    """Of one prompt, as the peer counts them."""


class Peer:
    """An engine that is loaded and ready. Answers are greedy and never end early."""

    def __init__(self, setup: Setup) -> None:
        raise NotImplementedError

    def about(self) -> dict[str, str]:
        """Versions, and under `computes` the arithmetic that is really done."""
        raise NotImplementedError

    def answer(self, prompts: Sequence[Prompt], tokens: int) -> Answer:
        """All prompts at once; `first` is that of the earliest."""
        raise NotImplementedError

    def tile(self) -> float:
        """Seconds of one tile through tower and projector."""
        raise Lacks("its tower cannot be called alone")

    def preprocess(self, photos: Sequence[bytes]) -> int:
        """Files to tiles, as many at a time as the engine would; returns the number of tiles."""
        raise Lacks("its preprocessing cannot be called alone")

    def quote(self, number: str) -> float:
        """How many times faster it repeats a number of its prompt when it guesses ahead."""
        raise NotImplementedError


def run(kind: type[Peer]) -> None:
    """The main program of a peer."""
    options = _parser().parse_args()
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print as well
    sizes = QUICK if options.quick else FULL
    words = json.loads(Path(options.words).read_text())
    streams = sizes.streams if options.group == "streams" else 1
    context = sizes.stream_context if options.group == "streams" else sizes.context

    def say(**line: Any) -> None:
        print(json.dumps(line), file=lines)

    try:
        peer = kind(Setup(Path(options.form), options.precision, options.threads, streams, context))
    except Lacks as lack:
        return say(lacks="everything", why=str(lack))
    peer.answer([Work(sizes, words, "first").question()], 1)
    say(answered=True)
    say(about=peer.about())
    for name, task in TASKS.items():
        if task.group != options.group or not set(task.rows) & set(options.rows):
            continue
        warm = Work(sizes, words, f"warm {name}")
        work = Work(sizes, words, f"{options.round} {name}")
        try:
            if task.warm:
                list(task.measure(peer, warm))
            ends = time.perf_counter() + ENOUGH
            for _ in range(sizes.repeats if task.repeats else 1):
                for value in task.measure(peer, work):
                    say(**asdict(value), unit=ROWS[value.row].unit)
                if time.perf_counter() > ends:
                    break
        except Lacks as lack:
            for row in task.rows:
                say(lacks=row, why=str(lack))
    if options.group in ONE_ENGINE:
        say(**asdict(Value("memory", peak_bytes(os.getpid()) / 1e9)), unit=ROWS["memory"].unit)
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--form", required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--rows", nargs="+", required=True)
    parser.add_argument("--words", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--round", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    return parser


def file_of(setup: Setup, name: str) -> Path:
    path = setup.form / name
    if not path.exists():
        print(f"{path} is missing", file=sys.stderr)
        raise Lacks(f"no {name} of this precision was given")
    return path


def peak_bytes(pid: int) -> int:
    """Return the highest resident size of a process and of those below it (Linux); shared pages count for each."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:  # it has ended
        return 0
    own = next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)
    return own + sum(peak_bytes(int(child)) for child in itertools.chain(*children))
