"""Tiles a second through the vision tower, at batches of several sizes: what a picture costs, and nothing else.

Steps have only tiles to encode, with new pixels each, as the engine's own steps would.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilewise.bench.figures import Spread
from tilewise.bench.offline import check_above_zero
from tilewise.config import EngineConfig
from tilewise.console import progress_bar
from tilewise.errors import InvalidConfig
from tilewise.inputs.prepare import tile_digest
from tilewise.inputs.spec import InputSpec
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.step import EncodeJob, Runner, StepPlan
from tilewise.weights.checkpoint import Checkpoint

PERCENTS = (50.0, 99.0)


@dataclass(frozen=True)
class EncodeBench:
    engine: dict[str, Any] = field(default_factory=dict)
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16)
    warmups: int = 2
    iterations: int = 10
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        check_above_zero({"num-iters": self.iterations, "num-iters-warmup": self.warmups + 1})
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise InvalidConfig(f"--batch-sizes takes whole numbers above 0, got {self.batch_sizes}.")


@dataclass(frozen=True, slots=True)
class EncodeRow:
    batch_size: int
    seconds: Spread
    """Seconds of a batch."""

    @property
    def tiles_per_second(self) -> float:
        return self.batch_size / self.seconds.median


def run_encode(bench: EncodeBench, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Run the benchmark, and return the result as --output-json has it."""
    # Imported here: what a caller can get wrong is known before torch is loaded.
    from tilewise.runner.build import build_runner

    config = EngineConfig.of(**bench.engine)
    checkpoint = Checkpoint.of(config)
    tokenizer = Tokenizer.from_folder(checkpoint.tokenizer)
    spec = InputSpec.of(checkpoint.folder, tokenizer, config.mm_processor_kwargs)
    runner, resolved = build_runner(config, checkpoint, tokenizer.image_context_id)
    try:
        _check_pages(bench, resolved.limits.tile_pages)
        rows = _measure(bench, runner, spec.tiling.tile_size)
    finally:
        runner.close()
    for line in _table(rows, spec.tokens_per_tile):
        say(line)
    return {
        "tile_size": spec.tiling.tile_size,
        "tokens_per_tile": spec.tokens_per_tile,
        "batches": [
            {"batch_size": row.batch_size, "tiles_per_second": row.tiles_per_second, **dataclasses.asdict(row.seconds)}
            for row in rows
        ],
    }


def _check_pages(bench: EncodeBench, pages: int) -> None:
    if max(bench.batch_sizes) > pages:
        raise InvalidConfig(
            f"--batch-sizes asks for {max(bench.batch_sizes)} tiles at once, and there is room for {pages}: "
            "ask for fewer."
        )


def _measure(bench: EncodeBench, runner: Runner, side: int) -> list[EncodeRow]:
    generator = np.random.default_rng(bench.seed)
    rounds = bench.warmups + bench.iterations
    found = []
    with progress_bar("Batches", rounds * len(bench.batch_sizes), bench.progress) as advance:
        for size in bench.batch_sizes:
            seconds = []
            for _ in range(rounds):
                seconds.append(_encode(runner, _jobs(generator, size, side)))
                advance(1)
            found.append(EncodeRow(size, Spread.of(seconds[bench.warmups :], PERCENTS)))
    return found


def _jobs(generator: np.random.Generator, count: int, side: int) -> tuple[EncodeJob, ...]:
    pixels = generator.integers(0, 256, (count, side, side, 3), np.uint8)
    return tuple(EncodeJob(tile_digest(tile), tile, page) for page, tile in enumerate(pixels))


def _encode(runner: Runner, jobs: tuple[EncodeJob, ...]) -> float:
    started = time.perf_counter()
    # A runner may encode over several steps: empty ones follow the first until all tiles have come.
    plan, left = StepPlan(0, (), (), jobs, ()), len(jobs)
    while left:
        left -= len(runner.launch(plan).wait().encoded)
        plan = StepPlan(plan.index + 1, (), (), (), ())
    return time.perf_counter() - started


def _table(rows: Sequence[EncodeRow], tokens: int) -> Iterator[str]:
    yield f"{'tiles a batch':>14}{'tiles/s':>12}{'tokens/s':>12}{'median ms':>12}{'P99 ms':>12}"
    for row in rows:
        rate, milliseconds = row.tiles_per_second, row.seconds.scaled(1000)
        last = milliseconds.percentiles[-1][1]
        yield f"{row.batch_size:>14}{rate:>12.2f}{rate * tokens:>12.1f}{milliseconds.median:>12.2f}{last:>12.2f}"
