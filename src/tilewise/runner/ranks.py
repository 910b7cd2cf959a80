"""Several ranks as one runner: what the first one is told to launch, all of them launch.

Every rank has its own tables, caches and tile pool, and applies the same plans in the same order, so that blocks and
pages mean the same on all of them. Tokens are chosen by the first rank. The others are processes that it starts, or
actors of a Ray cluster (`ray_ranks.py`), and end with it, however that ended.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from tilewise.config import EngineConfig
from tilewise.console import set_up_logs
from tilewise.errors import InvalidConfig, RankDied, TilewiseError
from tilewise.host import Memory
from tilewise.parallel.mesh import Mesh
from tilewise.parallel.ranks import broadcast, join, leave, refuse_second
from tilewise.plan import Resolved
from tilewise.platforms import current_platform
from tilewise.platforms.base import Platform
from tilewise.runner.processes import (
    bind_to_cores,
    cores_of_each,
    end_all,
    end_with_the_first,
    start_module,
    task_of_this,
)
from tilewise.runner.runner import LocalRunner
from tilewise.step import Handle, StepPlan
from tilewise.weights.folder import CheckpointFolder

logger = logging.getLogger("tilewise")

_HERE = b"here\n"
"""Word of another rank once it is able to join."""


@dataclass(frozen=True, slots=True)
class BuildDecisions:
    """Decisions of the first rank, from which all ranks build."""

    resolved: Resolved
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class RankTask:
    """The task that another rank is started with; what the first rank has decided comes once it has joined."""

    config: EngineConfig
    model: CheckpointFolder
    draft: CheckpointFolder | None
    rank: int
    log_level: str
    device: int
    """The number of its GPU, where ranks have GPUs."""
    address: str = ""
    """Address at which ranks meet, as `join` takes it; whoever starts the rank fills it in."""
    threads: int = 1
    cores: Sequence[int] = ()
    """Processor cores that the rank keeps to; empty = the system moves its threads."""


class RankLauncher(Protocol):
    """A host of the other ranks, which finds room for them, starts them, and knows which have ended."""

    address: str
    """Address at which all ranks meet, once they have been started."""
    threads: int
    """Threads of the first rank, once the others have been started."""
    notices: float
    """Seconds between a broken connection and knowing of the end of the process at its other end, at most."""

    def share(self, here: Memory) -> Memory:
        """Return the memory of each rank, where this machine has `here`; of several machines, the least."""

    def start(self, tasks: Sequence[RankTask]) -> None:
        """Return when all of them are able to join. Raises RankDied, or InvalidConfig where one cannot be started."""

    def joined(self) -> None:
        """Do what is due once all ranks have met."""

    def dead(self) -> str | None:
        """Return which rank has ended, and how; the first of several; None if all run."""

    def end(self) -> None:
        """Wait until the ranks have ended, and end those that do not."""


class Ranks:
    """The other ranks of this process' mesh."""

    def __init__(self, config: EngineConfig, backend: str = "gloo", first_device: int = 0) -> None:
        """Find room for the ranks. Raises InvalidConfig where there is none."""
        self._config, self._backend, self._first_device = config, backend, first_device
        self._threads_before = torch.get_num_threads()
        refuse_second(config.layout)
        self._host = _host_of(config, backend)

    def share(self, here: Memory) -> Memory:
        """Return the memory of each rank, where this machine has `here`; of several machines, the least."""
        return self._host.share(here)

    def start(self, model: CheckpointFolder, draft: CheckpointFolder | None) -> Mesh:
        """Start the ranks, and join them as the first one. They load nothing before they are told what."""
        size = self._config.layout.ranks
        level = logging.getLevelName(logging.getLogger("tilewise").getEffectiveLevel())
        logger.info("Starting %d other %s", size - 1, "rank" if size == 2 else "ranks")
        shared = (self._config, model, draft)
        self._host.start([RankTask(*shared, rank, level, self._first_device + rank) for rank in range(1, size)])
        torch.set_num_threads(self._host.threads)
        mesh = join(0, self._config.layout, self._host.address, self._backend)
        self._host.joined()
        return mesh

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Raise RankDied, which says which rank ended and how, for what fails inside for want of another rank."""
        try:
            yield
        except RuntimeError as error:
            until = time.monotonic() + self._host.notices
            while (dead := self._host.dead()) is None and time.monotonic() < until:
                time.sleep(0.01)
            if dead is None:
                raise
            raise RankDied(f"{dead}.") from error

    def check(self) -> None:
        """Raise RankDied if one of them has ended."""
        if (dead := self._host.dead()) is not None:
            raise RankDied(f"{dead}.")

    @contextmanager
    def building(self) -> Iterator[None]:
        """End the other ranks if this one cannot be built."""
        try:
            with self.watched():
                yield
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Wait until the ranks have ended, and end those that do not."""
        leave()
        torch.set_num_threads(self._threads_before)
        self._host.end()


class RankedRunner:
    """The first rank's runner, which tells the others what to launch."""

    def __init__(self, runner: LocalRunner, ranks: Ranks) -> None:
        self._runner, self._ranks = runner, ranks
        self._listening = True

    def launch(self, plan: StepPlan) -> Handle:
        """Launch a plan on all ranks. Raises RankDied when another rank is not there any more."""
        try:
            with self._ranks.watched():
                broadcast(plan)
                return self._runner.launch(plan)
        except BaseException:
            self._listening = False  # others may be in the middle of a pass, and wait there for what will not come
            raise

    def check(self) -> None:
        self._runner.check()
        try:
            self._ranks.check()
        except RankDied:
            self._listening = False
            raise

    def close(self) -> None:
        if self._listening:
            with suppress(RankDied), self._ranks.watched():
                broadcast(None)
        self._runner.close()
        self._ranks.close()


def follow(task: RankTask, platform: Platform) -> None:
    """Join the first rank, build what it says, and launch what it launches, until that ends."""
    from tilewise.runner.build import build_rank  # not above: it starts ranks

    try:
        mesh = join(task.rank, task.config.layout, task.address, platform.backend)
        runner = build_rank(task, platform, broadcast(), mesh)
        while (plan := broadcast()) is not None:
            runner.launch(plan)
        runner.close()
    finally:
        leave()


def _host_of(config: EngineConfig, backend: str) -> RankLauncher:
    bound = config.cpu_binding and config.data_parallel_size == 1
    if config.cpu_binding and (not bound or config.distributed_executor_backend == "ray"):
        logger.warning("cpu_binding: ranks of one engine on one machine can keep to cores; these share them")
    if config.distributed_executor_backend == "ray":
        if backend != "gloo":
            raise InvalidConfig(
                "distributed_executor_backend=ray: ranks on a Ray cluster compute on CPUs so far: use mp with the "
                "GPUs or NPUs of this machine, or device=cpu."
            )
        from tilewise.runner.ray_ranks import RayActors  # not above: Ray is an extra

        return RayActors(config)
    return RankProcesses(config.layout.ranks, bound)


class RankProcesses:
    """Ranks that are processes of this machine and share its cores. When the first one has ended, however that was,
    the standard input of the others is closed, and they end.
    """

    notices = 3.0

    def __init__(self, size: int, bound: bool = False) -> None:
        """Prepare `size` ranks; if `bound`, each keeps to cores of its own, where there are as many."""
        self._cores = cores_of_each(size) if bound else []
        self._cores_before = os.sched_getaffinity(0) if self._cores else set()
        if bound and not self._cores:
            logger.warning("cpu_binding: %d ranks have fewer cores than that, and share them", size)
        self._meeting = tempfile.mkdtemp(prefix="tilewise-ranks-")
        self._size, self._processes = size, list[subprocess.Popen[bytes]]()
        self.address = f"file://{self._meeting}/address"
        self.threads = max(1, torch.get_num_threads() // size)

    def share(self, here: Memory) -> Memory:
        return Memory(here.total // self._size, here.free // self._size)

    def start(self, tasks: Sequence[RankTask]) -> None:
        """Start the ranks. Raises RankDied where one ends before it could join: the others would wait for it."""
        for task in tasks:
            cores = self._cores[task.rank] if self._cores else []
            started = replace(task, address=self.address, threads=self.threads, cores=cores)
            self._processes.append(start_module("tilewise.runner.ranks", started))
        for number, process in enumerate(self._processes, 1):
            assert process.stdout is not None
            if process.stdout.readline() != _HERE:
                raise RankDied(f"Rank {number} ended with status {process.wait()} as it was started; see the log.")

    def joined(self) -> None:
        if self._cores:
            bind_to_cores(self._cores[0])
            logger.info("cpu_binding: each of %d ranks keeps to %d cores", self._size, len(self._cores[0]))

    def dead(self) -> str | None:
        for number, process in enumerate(self._processes, 1):
            if (status := process.poll()) is not None:
                return f"Rank {number} of {self._size} ended with status {status}"
        return None

    def end(self) -> None:
        end_all(self._processes)
        if self._cores:
            bind_to_cores(self._cores_before)
        shutil.rmtree(self._meeting, ignore_errors=True)


def main() -> None:
    """Run another rank, whose task is the first thing on standard input, until that is closed."""
    task: RankTask = task_of_this()
    set_up_logs(f"Rank{task.rank}", task.log_level)
    end_with_the_first()
    if task.cores:
        bind_to_cores(task.cores)
    torch.set_num_threads(task.threads)
    platform = current_platform(task.config.device, number=task.device)
    sys.stdout.buffer.write(_HERE)
    sys.stdout.buffer.flush()
    os.dup2(2, 1)  # whatever else prints goes where the log goes
    try:
        follow(task, platform)
    except TilewiseError as error:
        logger.error("%s", error)
        raise SystemExit(1) from None
    except RuntimeError as error:
        logger.error("The first rank is gone: %s", str(error).splitlines()[0])
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
