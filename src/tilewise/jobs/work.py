"""One run over an engine: it is started, the lines that are left are asked, and it ends."""

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
from tilewise.jobs.ask import Asker
from tilewise.jobs.config import Job
from tilewise.jobs.desk import asked_paths, open_desk
from tilewise.jobs.feed import Feed, Input
from tilewise.jobs.meter import meter
from tilewise.jobs.output import CannotWrite, Output
from tilewise.jobs.result import Result
from tilewise.jobs.scan import Found
from tilewise.jobs.source import read_lines
from tilewise.jobs.stop import Stop
from tilewise.jobs.tally import Summary
from tilewise.jobs.window import Window
from tilewise.remote.child import EngineProcess
from tilewise.remote.wire import Build
from tilewise.server.config import ServerConfig


class Asked(Protocol):
    """Where lines are asked."""

    engines: int

    @property
    def app(self) -> ASGIApp:
        """The application of them all."""

    async def until_ready(self) -> None:
        """Raises EngineDead where no engine will come back."""


_ENVELOPE = 2**16  # bytes of a line around its body


@dataclass
class Work:
    """What is left of a job. `found` is kept up to date while results are written."""

    job: Job
    engine: EngineConfig
    server: ServerConfig
    digests: array[int]
    found: Found
    seconds: float = 0.0
    """That lines were asked for."""

    async def run(self, process: EngineProcess | None, signals: Collection[int], build: Build | None = None) -> Summary:
        """`process`: where the engine is to run; None = in the job's cluster.

        Raises Unfinished, and what hinders the engine's start.
        """
        earlier = self.found.tally.done
        stop = Stop(self.server.shutdown_timeout)
        try:
            with stop.on(signals):
                async with self._desk(process, build) as desk:
                    await self._ask_the_rest(desk, stop)
        except asyncio.CancelledError:
            if stop.signal is None:
                raise
        except (CannotWrite, EngineDead) as error:
            raise self._unfinished(str(error)) from None
        if stop.signal is not None and self.found.tally.done < len(self.digests):
            raise self._unfinished(f"The run was ended by {Signals(stop.signal).name}.", stop.signal)
        return Summary.of(self.found.tally, earlier, self.seconds)

    def _desk(self, process: EngineProcess | None, build: Build | None) -> AbstractAsyncContextManager[Asked]:
        if process is None:
            from tilewise.jobs.cluster_desk import open_cluster_desk  # not above: Ray is an extra

            return open_cluster_desk(self.engine, self.server, self.job.replicas, self.job.replica_cpus)
        metrics = (self.job.url, self.job.port) if self.job.enable_metrics else None
        return open_desk(self.engine, self.server, process, build, metrics)

    async def _ask_the_rest(self, desk: Asked, stop: Stop) -> None:
        tally, limit = self.found.tally, int(self.server.max_body_mb * 2**20) + _ENVELOPE
        lines = read_lines(self.job.input_file, limit)
        source = Input(lines, self.digests, self.found.finished, asked_paths(), limit)
        window = Window(self.job.lines_in_flight(self.engine, desk.engines), self.job.keep_order)
        output, begin = Output(self.job.output_file), time.monotonic()
        try:
            with meter(tally, len(self.digests)) as moved:

                def wrote(result: Result) -> None:
                    self.found.add(result)
                    moved()

                feed = Feed(source, Asker(desk.app, desk.until_ready, self.job.retries), output, window, wrote)
                stop.ask_no_more = feed.stop
                await feed.run()
        finally:
            output.close()
            self.seconds = time.monotonic() - begin

    def _unfinished(self, why: str, signal: int | None = None) -> Unfinished:
        return Unfinished.of(why, self.found.tally.done, len(self.digests), signal)
