"""How long one batch takes, again and again: prompts of random tokens, answers of a fixed length."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilewise.beam import BeamSearchParams
from tilewise.bench.spread import Spread
from tilewise.bench.words import LocalWords
from tilewise.errors import InvalidConfig
from tilewise.llm import LLM
from tilewise.progress import progress_bar
from tilewise.sampling_params import SamplingParams

PERCENTS = (10, 25, 50, 75, 90, 99)
_LARGEST_ID = 10000
"""As in vLLM: these are common words in every vocabulary."""


@dataclass(frozen=True)
class LatencyBench:
    engine: dict[str, Any] = field(default_factory=dict)
    """Options of EngineConfig. Prefixes are not cached unless they say so: the same prompts come again and again."""
    input_len: int = 32
    output_len: int = 128
    batch_size: int = 8
    n: int = 1
    beams: bool = False
    """Beam search of width `n`, in place of `n` answers."""
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
    """The result, as --output-json has it."""
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
    """Answers that the context cuts short would be fast ones. Raises InvalidConfig."""
    context = llm.resolved.limits.max_model_len
    if input_len + output_len > context:
        raise InvalidConfig(
            f"--input-len {input_len} and --output-len {output_len} are {input_len + output_len} tokens, the context "
            f"holds {context}: ask for fewer, or for a larger --max-model-len."
        )


def _step(llm: LLM, bench: LatencyBench) -> Callable[[], object]:
    """One batch."""
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
