"""Runs a batch job: finds what earlier runs left in the output, starts an engine, and asks it the rest."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import time
from array import array
from collections.abc import Callable, Collection, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, closing, contextmanager
from os import PathLike
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any

from tilewise.config import EngineConfig
from tilewise.environment import Environment
from tilewise.errors import EngineDead, Unfinished, UnknownOption
from tilewise.foreign.table import ENGINE
from tilewise.jobs.feed import Feed, InFlight, Input, TaskClient
from tilewise.jobs.input import line_digests, read_lines
from tilewise.jobs.job import Job, check_server
from tilewise.jobs.output import BatchResult, CannotWrite, Found, Output, output_lock, scan, sort_output, without_failed
from tilewise.jobs.progress import Summary, meter
from tilewise.remote.engine import EngineProcess
from tilewise.remote.wire import Build
from tilewise.server.config import ServerConfig

if TYPE_CHECKING:
    from tilewise.jobs.server import ClusterServer, LocalServer

logger = logging.getLogger("tilewise")
_ENVELOPE = 2**16  # bytes of a line around its body


def run_batch(
    input_file: str | PathLike[str], output_file: str | PathLike[str], model: str = "demo", **options: Any
) -> Summary:
    """Answer a file of requests as `tilewise run-batch` does; options are those of Job, EngineConfig and ServerConfig.

    If there is an output already, the lines that it lacks are asked. Raises Unfinished when something ends the run.
    """
    of_job = {field.name for field in dataclasses.fields(Job)}
    own = {name: options.pop(name) for name in [*options] if name in of_job}
    job = Job(input_file=Path(input_file), output_file=Path(output_file), **own)
    return run(job, *_configs({"model": model, **options}))


def _configs(options: dict[str, Any]) -> tuple[EngineConfig, ServerConfig]:
    of_engine, of_server, of_job = (
        {field.name for field in dataclasses.fields(kind)} for kind in (EngineConfig, ServerConfig, Job)
    )
    foreign = {entry.name for entry in ENGINE}
    for name in options:
        if name not in of_engine | of_server | foreign:
            raise UnknownOption.named(name, of_engine | of_server | of_job, "A batch run")
    engine = {name: value for name, value in options.items() if name in of_engine | foreign}
    server = {name: value for name, value in options.items() if name in of_server}
    return EngineConfig.of(Environment.here(), **engine).for_whole_answers(), ServerConfig(**server)


def run(job: Job, engine: EngineConfig, server: ServerConfig, signals: Collection[int] = ()) -> Summary:
    """Run a job. `signals` end the run in order, which only works in the main thread. Raises Unfinished."""
    check_server(server)
    job = dataclasses.replace(job, output_file=job.output_file.resolve())  # a link stays one when it is rewritten
    with output_lock(job.output_file):
        digests = line_digests(job.input_file)
        found = earlier_results(job, digests)
        if found.summary.lines < len(digests):
            _ask_the_rest(BatchRun(job, engine, server, digests, found), signals)
        job.output_file.touch()  # also of an input without lines
        if job.keep_order and not found.in_order:
            sort_output(job.output_file, len(digests))
        return found.summary


def earlier_results(job: Job, digests: array[int]) -> Found:
    """Return what earlier runs left; lines that failed are taken out first if they are to be asked again."""
    found = scan(job.output_file, digests)
    if found.torn:
        logger.warning(
            "%s: a broken output line of %d bytes, from an earlier kill, was cut off.", job.output_file, found.torn
        )
    if job.retry_failed and found.summary.failed:
        logger.info("%d lines that failed are asked again.", found.summary.failed.total())
        without_failed(job.output_file)
        found = scan(job.output_file, digests)
    found.summary.earlier = found.summary.lines
    if found.summary.earlier:
        logger.info("%d of %d lines were done before.", found.summary.earlier, len(digests))
    return found


def _ask_the_rest(work: BatchRun, signals: Collection[int]) -> None:
    if work.job.ray not in (None, "auto"):
        os.environ["RAY_ADDRESS"] = work.job.ray
    process = None if work.job.ray else EngineProcess()  # loads its libraries while this one loads those of HTTP
    try:
        _in_a_loop(work.run(process, signals))
    finally:
        if process is not None:
            process.kill()


def _in_a_loop(work: Coroutine[Any, Any, None]) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    # A notebook runs an event loop of its own in this thread, so another thread takes the work.
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)
    with closing(loop), ThreadPoolExecutor(1) as pool:
        future = pool.submit(loop.run_until_complete, task)
        try:
            return future.result()
        except KeyboardInterrupt:
            loop.call_soon_threadsafe(task.cancel)
            raise


@dataclasses.dataclass
class BatchRun:
    """A run of what is left of a job. `found` is kept up to date while results are written."""

    job: Job
    engine: EngineConfig
    server: ServerConfig
    digests: array[int]
    found: Found

    async def run(self, process: EngineProcess | None, signals: Collection[int], build: Build | None = None) -> None:
        """Ask all lines that are left, of an engine in `process`; None = of engines in the job's cluster.

        Raises Unfinished, and what hinders the engine's start.
        """
        stop = Stop(self.server.shutdown_timeout)
        try:
            with stop.on(signals):
                async with self._opened(process, build) as server:
                    await self._feed(server, stop)
        except asyncio.CancelledError:
            if stop.signal is None:
                raise
        except (CannotWrite, EngineDead) as error:
            raise self._unfinished(str(error)) from None
        if stop.signal is not None and self.found.summary.lines < len(self.digests):
            raise self._unfinished(f"The run was ended by {Signals(stop.signal).name}.", stop.signal)

    def _opened(
        self, process: EngineProcess | None, build: Build | None
    ) -> AbstractAsyncContextManager[LocalServer | ClusterServer]:
        # Not above: the engine's process has begun to load its libraries, and who has a mistake in a path needs none.
        from tilewise.jobs.server import open_cluster_server, open_local_server

        if process is None:
            return open_cluster_server(self.engine, self.server, self.job.replicas, self.job.replica_cpus)
        metrics = (self.job.url, self.job.port) if self.job.enable_metrics else None
        return open_local_server(self.engine, self.server, process, build, metrics)

    async def _feed(self, server: LocalServer | ClusterServer, stop: Stop) -> None:
        from tilewise.server.bodies import BODIES

        summary, limit = self.found.summary, int(self.server.max_body_mb * 2**20) + _ENVELOPE
        lines = read_lines(self.job.input_file, limit)
        source = Input(lines, self.digests, self.found.finished, [body.route for body in BODIES], limit)
        in_flight = InFlight(self.job.lines_in_flight(self.engine, server.engines), self.job.keep_order)
        ask = TaskClient(server.post, server.until_ready, self.job.retries)
        output, begin = Output(self.job.output_file), time.monotonic()
        try:
            with meter(summary, len(self.digests)) as moved:

                def wrote(result: BatchResult) -> None:
                    self.found.add(result)
                    moved()

                feed = Feed(source, ask, output, in_flight, wrote)
                stop.ask_no_more = feed.stop
                await feed.run()
        finally:
            output.close()
            summary.seconds = time.monotonic() - begin

    def _unfinished(self, why: str, signal: int | None = None) -> Unfinished:
        return Unfinished.of(why, self.found.summary.lines, len(self.digests), signal)


class Stop:
    """A handler of signals, which end the task that made it.

    At the first signal no more lines are asked, and after `patience` seconds the task is cancelled. A second signal
    cancels it at once.
    """

    def __init__(self, patience: float) -> None:
        self.signal: int | None = None
        """Number of the first signal that came; None = none."""
        self.ask_no_more: Callable[[], None] = lambda: None
        self._patience = patience
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()

    def __call__(self, number: int) -> None:
        at_once = self.signal is not None or not self._patience
        self.signal = self.signal or number
        self.ask_no_more()
        assert self._task is not None
        self._loop.call_later(0 if at_once else self._patience, self._task.cancel)

    @contextmanager
    def on(self, signals: Collection[int]) -> Iterator[None]:
        for number in signals:
            self._loop.add_signal_handler(number, self, number)
        try:
            yield
        finally:
            for number in signals:
                self._loop.remove_signal_handler(number)
