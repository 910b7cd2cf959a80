"""Runs a batch job: finds what earlier runs left in the output, and asks an engine the rest."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from array import array
from collections.abc import Collection, Coroutine
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import Any

from tilewise.config import EngineConfig
from tilewise.errors import UnknownOption
from tilewise.foreign.table import ENGINE
from tilewise.jobs.config import Job, check_server
from tilewise.jobs.output import Found, output_lock, scan, sort_output, without_failed
from tilewise.jobs.progress import Summary
from tilewise.jobs.source import line_digests
from tilewise.remote.engine_process import EngineProcess
from tilewise.server.config import ServerConfig

logger = logging.getLogger("tilewise")


def run_batch(
    input_file: str | PathLike[str],
    output_file: str | PathLike[str],
    model: str = "demo",
    *,
    keep_order: bool = Job.keep_order,
    max_in_flight: int | None = None,
    retries: int = Job.retries,
    retry_failed: bool = False,
    enable_metrics: bool = False,
    url: str = Job.url,
    port: int = Job.port,
    ray: str | None = None,
    replicas: int | None = None,
    replica_cpus: float = Job.replica_cpus,
    **options: Any,
) -> Summary:
    """Answer a file of requests as `tilewise run-batch` does; options are those of EngineConfig and ServerConfig.

    If there is an output already, the lines that it lacks are asked. Raises Unfinished when something ends the run.
    """
    job = Job(
        input_file=Path(input_file),
        output_file=Path(output_file),
        keep_order=keep_order,
        max_in_flight=max_in_flight,
        retries=retries,
        retry_failed=retry_failed,
        enable_metrics=enable_metrics,
        url=url,
        port=port,
        ray=ray,
        replicas=replicas,
        replica_cpus=replica_cpus,
    )
    return run(job, *_configs({"model": model, **options}))


def _configs(options: dict[str, Any]) -> tuple[EngineConfig, ServerConfig]:
    names = [{field.name for field in dataclasses.fields(kind)} for kind in (EngineConfig, ServerConfig)]
    foreign = {entry.name for entry in ENGINE}
    for name in options:
        if not any(name in known for known in (*names, foreign)):
            raise UnknownOption.named(name, names[0] | names[1], "A batch run")
    of_engine, of_server = (
        {name: options[name] for name in options if name in known} for known in (names[0] | foreign, names[1])
    )
    return EngineConfig.of(**of_engine).for_whole_answers(), ServerConfig.of(**of_server)


def run(job: Job, engine: EngineConfig, server: ServerConfig, signals: Collection[int] = ()) -> Summary:
    """Run a job. `signals` end the run in order, which only works in the main thread. Raises Unfinished."""
    check_server(server)
    job = dataclasses.replace(job, output_file=job.output_file.resolve())  # a link stays one when it is rewritten
    with output_lock(job.output_file):
        digests = line_digests(job.input_file)
        found = earlier_results(job, digests)
        summary = Summary.of(found.counts, found.counts.done, 0.0)
        if found.counts.done < len(digests):
            summary = _ask_the_rest(job, engine, server, digests, found, signals)
        job.output_file.touch()  # also of an input without lines
        if job.keep_order and not found.in_order:
            sort_output(job.output_file, len(digests))
        return summary


def earlier_results(job: Job, digests: array[int]) -> Found:
    """Return what earlier runs left; lines that failed are taken out first if they are to be asked again."""
    found = scan(job.output_file, digests)
    if found.torn:
        logger.warning(
            "%s: a broken output line of %d bytes, from an earlier kill, was cut off.", job.output_file, found.torn
        )
    if job.retry_failed and found.counts.failed:
        logger.info("%d lines that failed are asked again.", found.counts.failed.total())
        without_failed(job.output_file)
        found = scan(job.output_file, digests)
    if found.counts.done:
        logger.info("%d of %d lines were done before.", found.counts.done, len(digests))
    return found


def _ask_the_rest(
    job: Job, engine: EngineConfig, server: ServerConfig, digests: array[int], found: Found, signals: Collection[int]
) -> Summary:
    if job.ray not in (None, "auto"):
        os.environ["RAY_ADDRESS"] = job.ray
    process = None if job.ray else EngineProcess()  # loads its libraries while this one loads those of HTTP
    try:
        from tilewise.jobs.batch_run import BatchRun  # not above: no matter for who has a mistake in a path

        return _in_a_loop(BatchRun(job, engine, server, digests, found).run(process, signals))
    finally:
        if process is not None:
            process.kill()


def _in_a_loop(work: Coroutine[Any, Any, Summary]) -> Summary:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    return _beside(work)


def _beside(work: Coroutine[Any, Any, Summary]) -> Summary:
    """Run in another thread, since a notebook runs an event loop of its own in this one."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)
    try:
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(loop.run_until_complete, task)
            try:
                return future.result()
            except KeyboardInterrupt:
                loop.call_soon_threadsafe(task.cancel)
                raise
    finally:
        loop.close()
