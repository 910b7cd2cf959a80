"""Benchmarks of the engine in this process: one batch again and again, and everything asked at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilewise.bench.datasets.sources import DatasetSource
from tilewise.bench.figures import Spread
from tilewise.bench.requests import SampleRequest
from tilewise.bench.words import LocalWords
from tilewise.console import progress_bar
from tilewise.entrypoints.beam_search import BeamSearchParams
from tilewise.entrypoints.llm import LLM
from tilewise.errors import InvalidConfig
from tilewise.sampling_params import SamplingParams
from tilewise.types import RequestOutput

PERCENTS = (10, 25, 50, 75, 90, 99)
_LARGEST_ID = 10000
"""End of the ids that prompts are drawn from, as in vLLM: those below are common words in every vocabulary."""


@dataclass(frozen=True)
class LatencyBench:
    engine: dict[str, Any] = field(default_factory=dict)
    """Options of EngineConfig. Prefixes are not cached unless they say so: the same prompts come again and again."""
    input_len: int = 32
    output_len: int = 128
    batch_size: int = 8
    n: int = 1
    beams: bool = False
    """True for beam search of width `n`, in place of `n` answers."""
    warmups: int = 10
    iterations: int = 30
    progress: bool = True

    def __post_init__(self) -> None:
        sizes = {"input-len": self.input_len, "output-len": self.output_len, "batch-size": self.batch_size, "n": self.n}
        check_above_zero({**sizes, "num-iters": self.iterations})
        if self.warmups < 0:
            raise InvalidConfig(f"--num-iters-warmup must be at least 0, got {self.warmups}.")


def check_above_zero(values: dict[str, int]) -> None:
    for name, value in values.items():
        if value < 1:
            raise InvalidConfig(f"--{name} must be at least 1, got {value}.")


def run_latency(bench: LatencyBench, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Run the benchmark, and return the result as --output-json has it."""
    with LLM(**{"enable_prefix_caching": False, **bench.engine}) as llm:
        check_fits(llm, bench.input_len, bench.output_len)
        step = _step(llm, bench)
        with progress_bar("Warming up", bench.warmups, bench.progress) as advance:
            for _ in range(bench.warmups):
                _seconds(step)
                advance(1)
        latencies = []
        with progress_bar("Batches", bench.iterations, bench.progress) as advance:
            for _ in range(bench.iterations):
                latencies.append(_seconds(step))
                advance(1)
    spread = Spread.of(latencies, PERCENTS)
    say(f"Avg latency: {spread.mean} seconds")
    for percent, value in spread.percentiles:
        say(f"{percent:g}% percentile latency: {value} seconds")
    percentiles = {f"{percent:g}": value for percent, value in spread.percentiles}
    return {"avg_latency": spread.mean, "latencies": latencies, "percentiles": percentiles}


def check_fits(llm: LLM, input_len: int, output_len: int) -> None:
    """Raise InvalidConfig if the context would cut answers short, which would be fast ones then."""
    context = llm.resolved.limits.max_model_len
    if input_len + output_len > context:
        raise InvalidConfig(
            f"--input-len {input_len} and --output-len {output_len} are {input_len + output_len} tokens, the context "
            f"holds {context}: ask for fewer, or for a larger --max-model-len."
        )


def _step(llm: LLM, bench: LatencyBench) -> Callable[[], object]:
    """Return a function that answers one batch of random prompts."""
    ordinary = [token for token in LocalWords(llm.inputs.tokenizer).ordinary if token < _LARGEST_ID]
    ids = np.random.default_rng(0).choice(ordinary, (bench.batch_size, bench.input_len)).tolist()
    prompts = [{"prompt_token_ids": prompt} for prompt in ids]
    if bench.beams:
        beams = BeamSearchParams(beam_width=bench.n, max_tokens=bench.output_len, ignore_eos=True)
        return lambda: llm.beam_search(prompts, beams)
    params = SamplingParams(n=bench.n, temperature=1.0, ignore_eos=True, max_tokens=bench.output_len)
    return lambda: llm.generate(prompts, params, use_tqdm=False)


def _seconds(step: Callable[[], object]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


@dataclass(frozen=True)
class ThroughputBench:
    source: DatasetSource
    engine: dict[str, Any] = field(default_factory=dict)
    n: int = 1
    chat: bool = False
    """True to ask every prompt as a conversation. All are if one of them has pictures or messages."""
    progress: bool = True


def run_throughput(bench: ThroughputBench, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Run the benchmark, and return the result as --output-json has it."""
    with LLM(**bench.engine) as llm:
        requests = bench.source.requests(LocalWords(llm.inputs.tokenizer))
        chat = bench.chat or any(request.media or request.messages for request in requests)
        sampling = [_sampling(request, bench.n) for request in requests]
        started = time.perf_counter()
        outputs = _answers(llm, requests, sampling, chat, bench.progress)
        elapsed = time.perf_counter() - started
    _check_lengths(requests, outputs, llm.resolved.limits.max_model_len)
    prompt, answered, image, tiles = _totals(outputs)
    say(
        f"Throughput: {len(requests) / elapsed:.2f} requests/s, {(prompt + answered) / elapsed:.2f} total tokens/s, "
        f"{answered / elapsed:.2f} output tokens/s"
    )
    say(f"Total num prompt tokens:  {prompt}")
    say(f"Total num output tokens:  {answered}")
    if image:
        say(f"Total num image tokens:  {image}, of {tiles} tiles, among those of the prompts")
    return {
        "elapsed_time": elapsed,
        "num_requests": len(requests),
        "total_num_tokens": prompt + answered,
        "requests_per_second": len(requests) / elapsed,
        "tokens_per_second": (prompt + answered) / elapsed,
        "total_num_image_tokens": image,
        "total_num_tiles": tiles,
    }


def _answers(
    llm: LLM, requests: Sequence[SampleRequest], sampling: list[SamplingParams], chat: bool, progress: bool
) -> list[RequestOutput]:
    if chat:
        return llm.chat([request.conversation for request in requests], sampling, use_tqdm=progress)
    return llm.generate([request.prompt for request in requests], sampling, use_tqdm=progress)


def _sampling(request: SampleRequest, n: int) -> SamplingParams:
    return SamplingParams(n=n, temperature=1.0, ignore_eos=True, max_tokens=request.output_tokens)


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


def _totals(outputs: Sequence[RequestOutput]) -> tuple[int, int, int, int]:
    """Return the tokens of prompts, of answers and of pictures, and the tiles."""
    usages = [output.usage for output in outputs]
    names = ("prompt_tokens", "completion_tokens", "image_tokens", "tiles")
    prompt, answered, image, tiles = (sum(getattr(usage, name) for usage in usages) for name in names)
    return prompt, answered, image, tiles
