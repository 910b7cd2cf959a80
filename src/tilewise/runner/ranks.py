"""Several ranks as one runner: what the first one is told to launch, all of them launch.

Every rank has its own tables, caches and tile pool, and applies the same plans in the same order, so that blocks and
pages mean the same on all of them. Tokens are chosen by the first rank. The others are processes that it starts, and
that end with it, however that ended: their standard input is closed then.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch

from tilewise.config import EngineConfig
from tilewise.errors import RankDied, TilewiseError
from tilewise.logs import set_up_logs
from tilewise.parallel.ranks import join, leave, told
from tilewise.plan import Resolved
from tilewise.runner.runner import FinishedStep, LocalRunner
from tilewise.step import StepPlan
from tilewise.waiting import short_waits
from tilewise.weights.folder import CheckpointFolder

logger = logging.getLogger("tilewise")

_HERE = b"here\n"
"""What another rank says once it is able to join."""
_BROKEN = 3.0
"""Seconds between a broken connection and the end of the process at its other end, at most."""
_PATIENCE = 10.0
"""Seconds that another rank is given to end by itself."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What the first rank has decided, and all ranks build from."""

    resolved: Resolved
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class RankTask:
    """What another rank is started with; its orders come once it has joined."""

    config: EngineConfig
    model: CheckpointFolder
    draft: CheckpointFolder | None
    rank: int
    address: str
    threads: int
    log_level: str


class Ranks:
    """The other ranks of this process' mesh."""

    def __init__(self, config: EngineConfig, model: CheckpointFolder, draft: CheckpointFolder | None) -> None:
        """Start them, and join them as the first. They load nothing before they are told what."""
        size = config.layout.ranks
        self._meeting = tempfile.mkdtemp(prefix="tilewise-ranks-")
        address = f"file://{self._meeting}/address"
        threads = max(1, torch.get_num_threads() // size)
        level = logging.getLevelName(logging.getLogger("tilewise").getEffectiveLevel())
        tasks = [RankTask(config, model, draft, rank, address, threads, level) for rank in range(1, size)]
        self._threads_before = torch.get_num_threads()
        self._processes = [_start(task) for task in tasks]
        try:
            self._wait_until_there()
            torch.set_num_threads(threads)
            self.mesh = join(0, config.layout, address)
        except BaseException:
            self.close()
            raise

    def _wait_until_there(self) -> None:
        """Raises RankDied where one ends before it could join: the others would wait for it."""
        for number, process in enumerate(self._processes, 1):
            assert process.stdout is not None
            if process.stdout.readline() != _HERE:
                raise RankDied(f"Rank {number} ended with status {process.wait()} as it was started; see the log.")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """What fails for want of another rank says which one, and how it ended. Raises RankDied."""
        try:
            yield
        except RuntimeError as error:
            dead = self._first_dead()
            if dead is None:
                raise
            total = len(self._processes) + 1
            raise RankDied(f"Rank {dead[0]} of {total} ended with status {dead[1]}.") from error

    def _first_dead(self) -> tuple[int, int] | None:
        """Number and status; a connection is broken some time before the process that had it is gone."""
        until = time.monotonic() + _BROKEN
        while True:
            for number, process in enumerate(self._processes, 1):
                if (status := process.poll()) is not None:
                    return number, status
            if time.monotonic() > until:
                return None
            time.sleep(0.01)

    @contextmanager
    def building(self) -> Iterator[None]:
        """Where this rank cannot be built, the others end, too."""
        try:
            with self.watched():
                yield
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Wait until they have ended, and end those that do not."""
        leave()
        torch.set_num_threads(self._threads_before)
        for process in self._processes:
            for end in filter(None, (process.stdin, process.stdout)):
                end.close()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self._meeting, ignore_errors=True)


class RankedRunner:
    """The first rank's runner."""

    def __init__(self, runner: LocalRunner, ranks: Ranks) -> None:
        self._runner, self._ranks = runner, ranks

    def launch(self, plan: StepPlan) -> FinishedStep:
        """Raises RankDied when another rank is not there any more."""
        with self._ranks.watched():
            told(plan)
            return self._runner.launch(plan)

    def close(self) -> None:
        with suppress(RankDied), self._ranks.watched():
            told(None)
        self._runner.close()
        self._ranks.close()


def follow(runner: LocalRunner) -> None:
    """Another rank's: launch what the first one launches, until that ends."""
    while (plan := told(None)) is not None:
        runner.launch(plan)
    runner.close()


def _start(task: RankTask) -> subprocess.Popen[bytes]:
    """A new interpreter, which finds modules where this one does."""
    path = os.pathsep.join(sys.path)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "tilewise.runner.ranks"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **short_waits(os.environ), "PYTHONPATH": path},
    )
    assert process.stdin is not None
    pickle.dump(task, process.stdin)
    process.stdin.flush()
    return process


def main() -> None:
    """Run another rank, whose task is the first thing on standard input, until that is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes of a terminal: the first rank decides
    task: RankTask = pickle.load(sys.stdin.buffer)
    set_up_logs(f"Rank{task.rank}", task.log_level)
    threading.Thread(target=_end_with_the_first, name="tilewise-first-rank", daemon=True).start()
    torch.set_num_threads(task.threads)
    from tilewise.runner.build import build_rank

    sys.stdout.buffer.write(_HERE)
    sys.stdout.buffer.flush()
    os.dup2(2, 1)  # whatever else prints goes where the log goes
    mesh = join(task.rank, task.config.layout, task.address)
    try:
        follow(build_rank(task, told(None), mesh))
    except TilewiseError as error:
        logger.error("%s", error)
        raise SystemExit(1) from None
    except RuntimeError as error:
        logger.error("The first rank is gone: %s", str(error).splitlines()[0])
        raise SystemExit(1) from None
    finally:
        leave()


def _end_with_the_first() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
