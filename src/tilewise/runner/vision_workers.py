"""Vision workers: processes that encode tiles beside an engine that decodes.

Tiles go in as pixels and come back as rows. Which tile goes to which page, and when, is decided by the EncoderLane.
(Decoupled Vision-Language Deployment of the InternVL3.5 paper, arXiv 2508.18265.)
"""

from __future__ import annotations

import logging
import os
import pickle
import selectors
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import IO, Any, BinaryIO, NoReturn, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilewise.config import EngineConfig
from tilewise.console import set_up_logs
from tilewise.environment import Environment
from tilewise.errors import RankDied, TilewiseError
from tilewise.models.load import Architecture
from tilewise.models.tile_encoder import EncodedTiles, TileEncoder
from tilewise.platforms import current_platform
from tilewise.runner.processes import end_all, start_module, task_of_this
from tilewise.step import EncodeJob
from tilewise.weights.folder import CheckpointFolder

logger = logging.getLogger("tilewise")


@dataclass(frozen=True, slots=True)
class VisionTask:
    """The task that a worker is started with."""

    config: EngineConfig
    model: CheckpointFolder
    dtype: torch.dtype
    batch_invariant: bool
    threads: int = 1


Encoded = tuple[NDArray[np.uint8], list[float] | None]
"""A worker's answer for a batch: the bytes of its rows, and the scores of a router, if there is one."""


@dataclass
class _VisionWorker:
    """A worker's process, as the engine sees it."""

    process: subprocess.Popen[bytes]
    jobs: list[EncodeJob] = field(default_factory=list)
    """The batch that it is encoding; empty while it waits for one."""

    def say(self, message: object) -> None:
        assert self.process.stdin is not None
        pickle.dump(message, self.process.stdin)
        self.process.stdin.flush()

    @property
    def stdout(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout


class VisionWorkers:
    """The workers of an engine. Each has the tower, and encodes one batch of tiles at a time."""

    def __init__(self, task: VisionTask, count: int) -> None:
        """Start workers with equal shares of this process' threads, of which it keeps what is left."""
        self._threads_before = torch.get_num_threads()
        each = max(1, self._threads_before // (count + 1))
        torch.set_num_threads(max(1, self._threads_before - count * each))
        started = replace(task, threads=each)
        self._workers = [_VisionWorker(start_module("tilewise.runner.vision_workers", started)) for _ in range(count)]
        self._dtype = task.dtype

    def wait_until_loaded(self) -> bytes:
        """Return a digest of the weights by which tiles are encoded. Raises what a worker's model raised."""
        found = [self._hear(worker) for worker in self._workers]
        for error in found:
            if isinstance(error, TilewiseError):
                raise error
        return cast(bytes, found[0])

    @property
    def count(self) -> int:
        return len(self._workers)

    @property
    def is_free(self) -> bool:
        """True if a worker waits for a batch."""
        return any(not worker.jobs for worker in self._workers)

    def give(self, jobs: list[EncodeJob]) -> None:
        """Give a batch to a worker that waits."""
        worker = next(worker for worker in self._workers if not worker.jobs)
        try:
            worker.say(np.stack([job.pixels for job in jobs]))
        except OSError:
            self._died(worker)
        worker.jobs = jobs

    def finished(self, wait: bool) -> Iterator[tuple[list[EncodeJob], EncodedTiles]]:
        """Yield batches that are done, in any order; with `wait`, at least one, if there are any in flight."""
        # A worker has one batch, so one answer, at a time: none can lie in a buffer of this process, unseen by
        # `select`.
        busy = [worker for worker in self._workers if worker.jobs]
        with selectors.DefaultSelector() as waiting:
            for worker in busy:
                waiting.register(worker.stdout, selectors.EVENT_READ, worker)
            ready = [key.data for key, _ in waiting.select(None if wait and busy else 0)]
        for worker in ready:
            rows, scores = cast(Encoded, self._hear(worker))
            jobs, worker.jobs = worker.jobs, []
            found = torch.from_numpy(rows).view(self._dtype)
            yield jobs, EncodedTiles(found, None if scores is None else torch.tensor(scores))

    def check(self) -> None:
        """Raise RankDied if one of them has ended."""
        for worker in self._workers:
            if worker.process.poll() is not None:
                self._died(worker)

    def close(self) -> None:
        torch.set_num_threads(self._threads_before)
        end_all([worker.process for worker in self._workers])

    def _hear(self, worker: _VisionWorker) -> Any:
        try:
            return pickle.load(worker.stdout)
        except (EOFError, OSError):
            self._died(worker)

    def _died(self, worker: _VisionWorker) -> NoReturn:
        number, status = self._workers.index(worker) + 1, worker.process.wait()
        raise RankDied(f"Vision worker {number} of {self.count} ended with status {status}; see the log.")


def main() -> None:
    """Run a worker. Its task is the first thing on standard input, and tiles follow until that is closed."""
    task: VisionTask = task_of_this()
    out = cast(BinaryIO, os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)  # whatever else prints goes where the log goes
    set_up_logs("Vision", Environment.here().logging_level)
    torch.set_num_threads(task.threads)
    try:
        encoder, digest = _load(task)
    except TilewiseError as error:
        _send(out, error)
        raise SystemExit(1) from None
    _send(out, digest)
    device = current_platform(task.config.device).device
    for pixels in _messages():
        with torch.inference_mode():
            found = encoder(torch.from_numpy(pixels).to(device))
        scores = None if found.scores is None else found.scores.tolist()
        _send(out, (_bytes_of(found.rows), scores))


def _load(task: VisionTask) -> tuple[TileEncoder, bytes]:
    """Load the tower; return it, and a digest of its weights."""
    from tilewise.runner.build import load_encoder

    config, platform = task.config, current_platform(task.config.device)
    architecture = Architecture.of(task.model, config.flash_router, config.quantization)
    return load_encoder(architecture, config, task.dtype, platform.ops(task.batch_invariant), platform.device)


def _messages() -> Iterator[NDArray[np.uint8]]:
    while True:
        try:
            yield pickle.load(sys.stdin.buffer)
        except EOFError:  # the engine's process has ended
            return


def _send(out: BinaryIO, message: object) -> None:
    try:
        pickle.dump(message, out)
        out.flush()
    except BrokenPipeError:
        raise SystemExit(0) from None


def _bytes_of(rows: Tensor) -> NDArray[np.uint8]:
    """Return the bytes of rows [T, rows, hidden] of any dtype, uint8: numpy has no bfloat16."""
    found: NDArray[np.uint8] = rows.cpu().contiguous().view(torch.uint8).numpy()
    return found


if __name__ == "__main__":
    main()
