"""What planning a step costs, by the number of sequences that decode: no model, no tensors.

python benchmarks/scheduler.py
"""

from __future__ import annotations

import platform
import statistics
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from tilewise.engine.scheduler import Scheduler
from tilewise.sampling_params import SamplingParams
from tilewise.step import EncodedTile, Limits, StepPlan, StepResult
from tilewise.types import ImageInput, Request, SampledToken, Tile

STEPS = 200
TILES = 13
TILE_TOKENS = 256


def decoding(count: int) -> Scheduler:
    """A scheduler in which `count` sequences, each about a picture of 13 tiles, have come to their answers."""
    blocks = count * (TILES * TILE_TOKENS + 1024) // 16 + 1
    scheduler = Scheduler(Limits(count, 8192, 2**24, 16, blocks, TILE_TOKENS, TILES, 4, 4))
    tiles = tuple(Tile(bytes([number] * 16), np.zeros((1, 1, 3), np.uint8)) for number in range(TILES))
    for number in range(count):
        ids = (number + 9, *[2] * (TILES * TILE_TOKENS), *range(30))
        sampling = SamplingParams(max_tokens=1000)
        scheduler.add(Request(str(number), ids, sampling, (ImageInput(tiles, (4, 3), (1024, 768), 1),)))
    while not all(sequence.decoding for sequence in scheduler.running) or scheduler.waiting:
        run(scheduler, scheduler.plan())
    return scheduler


def run(scheduler: Scheduler, plan: StepPlan) -> None:
    sampled = {work.slot: (SampledToken(7),) for work in plan.work if work.samples}
    scheduler.commit(plan, StepResult(sampled, tuple(EncodedTile(job.digest) for job in plan.encode)))


def measure(count: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each plan and of each commit."""
    scheduler = decoding(count)
    plans, commits = [], []
    for _ in range(STEPS):
        started = time.perf_counter()
        plan = scheduler.plan()
        planned = time.perf_counter()
        run(scheduler, plan)
        plans.append(1000 * (planned - started))
        commits.append(1000 * (time.perf_counter() - planned))
        assert len(plan.work) == count
    return plans, commits


def main() -> None:
    table = Table("sequences", "plan, median ms", "worst", "commit, median ms", "plan, µs a sequence")
    for count in (1, 16, 64, 128, 256, 512):
        plans, commits = measure(count)
        median = statistics.median(plans)
        table.add_row(
            str(count),
            f"{median:.3f}",
            f"{max(plans):.3f}",
            f"{statistics.median(commits):.3f}",
            f"{1000 * median / count:.2f}",
        )
    Console().print(
        f"{STEPS} steps each, {platform.processor() or platform.machine()}, Python {platform.python_version()}"
    )
    Console().print(table)


if __name__ == "__main__":
    main()
