"""Benchmarks of the engine in this process: one batch again and again, everything at once, tiles alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tilewise.bench import Say
from tilewise.bench.datasets import DatasetSource
from tilewise.bench.figures import Spread
from tilewise.bench.options import EncodeOptions, LatencyOptions
from tilewise.bench.requests import SampleRequest
from tilewise.bench.tokenizer import LocalTokenizer
from tilewise.config import EngineConfig
from tilewise.console import progress_bar
from tilewise.entrypoints.beam_search import BeamSearchParams
from tilewise.entrypoints.llm import LLM
from tilewise.environment import Environment
from tilewise.errors import InvalidConfig
from tilewise.inputs.media.tiling import tile_digest
from tilewise.inputs.model_inputs import ModelInputs
from tilewise.sampling_params import SamplingParams
from tilewise.step import EncodeJob, Runner, StepPlan
from tilewise.types import RequestOutput

PERCENTS = (10, 25, 50, 75, 90, 99)
_ENCODE_PERCENTS = (50.0, 99.0)
_LARGEST_ID = 10000
"""End of the ids that prompts are drawn from, as in vLLM: those below are common words in every vocabulary."""


def run_latency(
    options: LatencyOptions, engine: dict[str, Any], say: Say = print, progress: bool = True
) -> dict[str, Any]:
    """Run the benchmark, and return the result as --output-json has it.

    `engine` are options of EngineConfig. Prefixes are not cached unless they say so: the same prompts come again and
    again.
    """
    with LLM(**{"enable_prefix_caching": False, **engine}) as llm:
        check_fits(llm, options.input_len, options.output_len)
        step = _step(llm, options)
        _timed(step, "Warming up", options.num_iters_warmup, progress)
        latencies = _timed(step, "Batches", options.num_iters, progress)
    spread = Spread.of(latencies, PERCENTS)
    say(f"Avg latency: {spread.mean} seconds")
    for percent, value in spread.by_percent().items():
        say(f"{percent}% percentile latency: {value} seconds")
    return {"avg_latency": spread.mean, "latencies": latencies, "percentiles": spread.by_percent()}


def check_fits(llm: LLM, input_len: int, output_len: int) -> None:
    """Raise InvalidConfig if the context would cut answers short, which would be fast ones then."""
    context = llm.resolved.limits.max_model_len
    if input_len + output_len > context:
        raise InvalidConfig(
            f"--input-len {input_len} and --output-len {output_len} are {input_len + output_len} tokens, the context "
            f"holds {context}: ask for fewer, or for a larger --max-model-len."
        )


def _step(llm: LLM, options: LatencyOptions) -> Callable[[], object]:
    """Return a function that answers one batch of random prompts."""
    ordinary = [token for token in LocalTokenizer(llm.inputs.tokenizer).ordinary if token < _LARGEST_ID]
    ids = np.random.default_rng(0).choice(ordinary, (options.batch_size, options.input_len)).tolist()
    prompts = [{"prompt_token_ids": prompt} for prompt in ids]
    if options.use_beam_search:
        beams = BeamSearchParams(beam_width=options.n, max_tokens=options.output_len, ignore_eos=True)
        return lambda: llm.beam_search(prompts, beams)
    params = SamplingParams(n=options.n, temperature=1.0, ignore_eos=True, max_tokens=options.output_len)
    return lambda: llm.generate(prompts, params, use_tqdm=False)


def _timed(step: Callable[[], object], title: str, count: int, show: bool) -> list[float]:
    """Return the seconds that a step takes, again and again."""
    found = []
    with progress_bar(title, count, show) as advance:
        for _ in range(count):
            started = time.perf_counter()
            step()
            found.append(time.perf_counter() - started)
            advance(1)
    return found


@dataclass(frozen=True)
class ThroughputBench:
    source: DatasetSource
    n: int = 1
    chat: bool = False
    """True to ask every prompt as a conversation. All are if one of them has pictures or messages."""


def run_throughput(
    bench: ThroughputBench, engine: dict[str, Any], say: Say = print, progress: bool = True
) -> dict[str, Any]:
    """Run the benchmark, and return the result as --output-json has it."""
    with LLM(**engine) as llm:
        requests = bench.source.requests(LocalTokenizer(llm.inputs.tokenizer))
        ask = _everything(llm, requests, bench, progress)
        started = time.perf_counter()
        outputs = ask()
        elapsed = time.perf_counter() - started
    _check_lengths(requests, outputs, llm.resolved.limits.max_model_len)
    found = _throughput(outputs, elapsed)
    for line in _summary(found, sum(output.usage.completion_tokens for output in outputs)):
        say(line)
    return found


def _summary(found: dict[str, Any], answered: int) -> Iterator[str]:
    """Yield the result in words; `answered` are the tokens of all answers."""
    image, tiles = found["total_num_image_tokens"], found["total_num_tiles"]
    yield (
        f"Throughput: {found['requests_per_second']:.2f} requests/s, {found['tokens_per_second']:.2f} total tokens/s, "
        f"{answered / found['elapsed_time']:.2f} output tokens/s"
    )
    yield f"Total num prompt tokens:  {found['total_num_tokens'] - answered}"
    yield f"Total num output tokens:  {answered}"
    if image:
        yield f"Total num image tokens:  {image}, of {tiles} tiles, among those of the prompts"


def _throughput(outputs: Sequence[RequestOutput], elapsed: float) -> dict[str, Any]:
    usages = [output.usage for output in outputs]
    tokens = sum(usage.prompt_tokens + usage.completion_tokens for usage in usages)
    return {
        "elapsed_time": elapsed,
        "num_requests": len(outputs),
        "total_num_tokens": tokens,
        "requests_per_second": len(outputs) / elapsed,
        "tokens_per_second": tokens / elapsed,
        "total_num_image_tokens": sum(usage.image_tokens for usage in usages),
        "total_num_tiles": sum(usage.tiles for usage in usages),
    }


def _everything(
    llm: LLM, requests: Sequence[SampleRequest], bench: ThroughputBench, progress: bool
) -> Callable[[], list[RequestOutput]]:
    """Return a function that answers all requests at once."""
    sampling = [
        SamplingParams(n=bench.n, temperature=1.0, ignore_eos=True, max_tokens=request.output_tokens)
        for request in requests
    ]
    if bench.chat or any(request.media or request.messages for request in requests):
        conversations = [request.conversation for request in requests]
        return lambda: llm.chat(conversations, sampling, use_tqdm=progress)
    prompts = [request.prompt for request in requests]
    return lambda: llm.generate(prompts, sampling, use_tqdm=progress)


def _check_lengths(requests: Sequence[SampleRequest], outputs: Sequence[RequestOutput], context: int) -> None:
    """Raise InvalidConfig if the context cut an answer short, which is no measure of anything then."""
    for request, output in zip(requests, outputs, strict=True):
        wanted = request.output_tokens
        shortest = min(len(answer.token_ids) for answer in output.outputs)
        if wanted is not None and shortest < wanted:
            raise InvalidConfig(
                f"A prompt of {output.usage.prompt_tokens} tokens leaves {shortest} of the {wanted} asked for: "
                f"the context holds {context}. Ask for fewer, or for a larger --max-model-len."
            )


@dataclass(frozen=True, slots=True)
class EncodeRow:
    batch_size: int
    seconds: Spread
    """Seconds of a batch."""

    @property
    def tiles_per_second(self) -> float:
        return self.batch_size / self.seconds.median

    def as_json(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size, "tiles_per_second": self.tiles_per_second, **asdict(self.seconds)}


def run_encode(
    options: EncodeOptions, engine: dict[str, Any], say: Say = print, progress: bool = True
) -> dict[str, Any]:
    """Measure tiles a second through the vision tower: what a picture costs, and nothing else.

    Steps have only tiles to encode, with new pixels each, as the engine's own steps would. The result is returned as
    --output-json has it.
    """
    # Imported here: what a caller can get wrong is known before torch is loaded.
    from tilewise.runner.build import build_runner

    config = EngineConfig.of(Environment.here(), **engine)
    inputs = ModelInputs.of(config)
    spec = inputs.spec
    runner, resolved = build_runner(config, inputs.checkpoint, inputs.tokenizer.image_context_id)
    try:
        _check_pages(max(options.batch_sizes), resolved.limits.tile_pages)
        rows = _measure(options, runner, spec.tiling.tile_size, progress)
    finally:
        runner.close()
    for line in _table(rows, spec.tokens_per_tile):
        say(line)
    batches = [row.as_json() for row in rows]
    return {"tile_size": spec.tiling.tile_size, "tokens_per_tile": spec.tokens_per_tile, "batches": batches}


def _check_pages(most: int, pages: int) -> None:
    if most > pages:
        raise InvalidConfig(
            f"--batch-sizes asks for {most} tiles at once, and there is room for {pages}: ask for fewer."
        )


def _measure(options: EncodeOptions, runner: Runner, side: int, progress: bool) -> list[EncodeRow]:
    generator = np.random.default_rng(options.seed)
    rounds = options.num_iters_warmup + options.num_iters
    found = []
    with progress_bar("Batches", rounds * len(options.batch_sizes), progress) as advance:
        for size in options.batch_sizes:
            seconds = []
            for _ in range(rounds):
                seconds.append(_encode(runner, _jobs(generator, size, side)))
                advance(1)
            found.append(EncodeRow(size, Spread.of(seconds[options.num_iters_warmup :], _ENCODE_PERCENTS)))
    return found


def _jobs(generator: np.random.Generator, count: int, side: int) -> tuple[EncodeJob, ...]:
    pixels = generator.integers(0, 256, (count, side, side, 3), np.uint8)
    return tuple(EncodeJob(tile_digest(tile), tile, page) for page, tile in enumerate(pixels))


def _encode(runner: Runner, jobs: tuple[EncodeJob, ...]) -> float:
    started = time.perf_counter()
    # A runner may encode over several steps: empty ones follow the first until all tiles have come.
    plan, left = StepPlan(0, (), (), jobs, ()), len(jobs)
    while left:
        left -= len(runner.launch(plan)().encoded)
        plan = StepPlan(plan.index + 1, (), (), (), ())
    return time.perf_counter() - started


def _table(rows: Sequence[EncodeRow], tokens: int) -> Iterator[str]:
    yield f"{'tiles a batch':>14}{'tiles/s':>12}{'tokens/s':>12}{'median ms':>12}{'P99 ms':>12}"
    for row in rows:
        rate, milliseconds = row.tiles_per_second, row.seconds.scaled(1000)
        last = milliseconds.percentiles[-1][1]
        yield f"{row.batch_size:>14}{rate:>12.2f}{rate * tokens:>12.1f}{milliseconds.median:>12.2f}{last:>12.2f}"
