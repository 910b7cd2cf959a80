"""BatchRun: starts an engine, asks it the lines that are left, and ends it."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from signal import Signals
from typing import Protocol

from starlette.types import ASGIApp

from tilewise.config import EngineConfig
from tilewise.errors import EngineDead, Unfinished
from tilewise.jobs.client import TaskClient
from tilewise.jobs.config import Job
from tilewise.jobs.feed import Feed, InFlight, Input, Stop
from tilewise.jobs.local_server import asked_paths, open_local_server
from tilewise.jobs.output import CannotWrite, Found, Output
from tilewise.jobs.progress import Summary, meter
from tilewise.jobs.result import BatchResult
from tilewise.jobs.source import read_lines
from tilewise.remote.engine_process import EngineProcess
from tilewise.remote.wire import Build
from tilewise.server.config import ServerConfig


class JobServer(Protocol):
    """A server that lines are sent to: LocalServer or ClusterServer."""

    engines: int
    """Number of engines behind the application."""

    @property
    def app(self) -> ASGIApp:
        """The ASGI application of all engines."""

    async def until_ready(self) -> None:
        """Wait until there is an engine. Raises EngineDead where none will come back."""


_ENVELOPE = 2**16  # bytes of a line around its body


@dataclass
class BatchRun:
    """A run of what is left of a job. `found` is kept up to date while results are written."""

    job: Job
    engine: EngineConfig
    server: ServerConfig
    digests: array[int]
    found: Found
    seconds: float = 0.0
    """Seconds that it took to ask the lines, without the engine's start."""

    async def run(self, process: EngineProcess | None, signals: Collection[int], build: Build | None = None) -> Summary:
        """Ask all lines that are left, of an engine in `process`; None = of engines in the job's cluster.

        Raises Unfinished, and what hinders the engine's start.
        """
        earlier = self.found.counts.done
        stop = Stop(self.server.shutdown_timeout)
        try:
            with stop.on(signals):
                async with self._opened(process, build) as asked:
                    await self._ask_the_rest(asked, stop)
        except asyncio.CancelledError:
            if stop.signal is None:
                raise
        except (CannotWrite, EngineDead) as error:
            raise self._unfinished(str(error)) from None
        if stop.signal is not None and self.found.counts.done < len(self.digests):
            raise self._unfinished(f"The run was ended by {Signals(stop.signal).name}.", stop.signal)
        return Summary.of(self.found.counts, earlier, self.seconds)

    def _opened(self, process: EngineProcess | None, build: Build | None) -> AbstractAsyncContextManager[JobServer]:
        if process is None:
            from tilewise.jobs.cluster_server import open_cluster_server  # not above: Ray is an extra

            return open_cluster_server(self.engine, self.server, self.job.replicas, self.job.replica_cpus)
        metrics = (self.job.url, self.job.port) if self.job.enable_metrics else None
        return open_local_server(self.engine, self.server, process, build, metrics)

    async def _ask_the_rest(self, asked: JobServer, stop: Stop) -> None:
        counts, limit = self.found.counts, int(self.server.max_body_mb * 2**20) + _ENVELOPE
        lines = read_lines(self.job.input_file, limit)
        source = Input(lines, self.digests, self.found.finished, asked_paths(), limit)
        in_flight = InFlight(self.job.lines_in_flight(self.engine, asked.engines), self.job.keep_order)
        output, begin = Output(self.job.output_file), time.monotonic()
        try:
            with meter(counts, len(self.digests)) as moved:

                def wrote(result: BatchResult) -> None:
                    self.found.add(result)
                    moved()

                feed = Feed(
                    source, TaskClient(asked.app, asked.until_ready, self.job.retries), output, in_flight, wrote
                )
                stop.ask_no_more = feed.stop
                await feed.run()
        finally:
            output.close()
            self.seconds = time.monotonic() - begin

    def _unfinished(self, why: str, signal: int | None = None) -> Unfinished:
        return Unfinished.of(why, self.found.counts.done, len(self.digests), signal)
