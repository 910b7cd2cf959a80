"""The benchmark of what happens to media: each stage before the engine, the wait for tiles, and the whole way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tilewise.bench.datasets.sources import Source
from tilewise.bench.spread import Spread, percent_name
from tilewise.bench.stages import STAGES, Stages, measure_stages
from tilewise.bench.words import LocalWords
from tilewise.errors import InvalidConfig
from tilewise.inputs.media_cache import MediaCache
from tilewise.llm import LLM, media_reader
from tilewise.progress import progress_bar
from tilewise.sampling_params import SamplingParams

WIDTH = 80
_LABELS = {
    "decode": "Decoding",
    "hash": "Hashing",
    "tiling": "Tiling",
    "prompt": "Prompt",
    "total": "Preprocessing, all of it",
    "encoder": "Waiting for tiles",
    "e2el": "End-to-End Latency",
}


@dataclass(frozen=True)
class ProcessorBench:
    source: Source
    engine: dict[str, Any] = field(default_factory=dict)
    warmups: int = 1
    percents: tuple[float, ...] = (99.0,)
    progress: bool = True

    def __post_init__(self) -> None:
        if self.warmups < 0:
            raise InvalidConfig(f"--num-warmups must be at least 0, got {self.warmups}.")


def run_processor(bench: ProcessorBench, say: Callable[[str], None] = print) -> dict[str, Any]:
    """The result, as --output-json has it; milliseconds."""
    with LLM(**bench.engine) as llm:
        requests = bench.source.requests(LocalWords(llm.inputs.tokenizer))
        conversations = [request.conversation for request in requests]
        sampling = [
            SamplingParams(max_tokens=request.output_tokens, ignore_eos=True, temperature=0) for request in requests
        ]
        stages = _stages(bench, llm, conversations)
        outputs = llm.chat(conversations, sampling, use_tqdm=bench.progress)
    values = {name: [getattr(stage, name) for stage in stages] for name in STAGES}
    values["encoder"] = [output.timing.encode or 0.0 for output in outputs]
    values["e2el"] = [output.timing.total or 0.0 for output in outputs]
    spreads = {name: Spread.of(found, bench.percents).scaled(1000) for name, found in values.items()}
    for line in _lines(spreads, stages):
        say(line)
    return {
        "num_requests": len(requests),
        "total_tiles": sum(stage.tiles for stage in stages),
        "total_prompt_tokens": sum(stage.prompt_tokens for stage in stages),
        **{f"{name}_ms": _fields(spread) for name, spread in spreads.items()},
    }


def _stages(bench: ProcessorBench, llm: LLM, conversations: Sequence[list[dict[str, Any]]]) -> list[Stages]:
    """Nothing is kept between requests, so every picture is cut."""
    preparer = replace(llm.inputs, cache=MediaCache(0))
    reader = media_reader(llm.config)
    found = []
    with progress_bar("Requests", len(conversations), bench.progress) as advance:
        for _ in range(bench.warmups):
            measure_stages(conversations[0], preparer, reader)
        for conversation in conversations:
            found.append(measure_stages(conversation, preparer, reader))
            advance(1)
    return found


def _fields(spread: Spread) -> dict[str, float]:
    percentiles = {f"p{percent_name(percent)}": value for percent, value in spread.percentiles}
    return {"mean": spread.mean, "median": spread.median, "std": spread.deviation, **percentiles}


def _lines(spreads: dict[str, Spread], stages: Sequence[Stages]) -> Iterator[str]:
    yield "=" * WIDTH
    yield "Multimodal Processor Benchmark Results"
    yield "=" * WIDTH
    tiles = sum(stage.tiles for stage in stages)
    yield f"{len(stages)} requests, {tiles} tiles, {sum(stage.prompt_tokens for stage in stages)} prompt tokens"
    yield ""
    yield "MM Processor Metrics (ms a request):"
    yield from _rows(spreads, [*STAGES, "encoder"])
    yield ""
    yield "End-to-End Latency (ms):"
    yield from _rows(spreads, ["e2el"])


def _rows(spreads: dict[str, Spread], names: Sequence[str]) -> Iterator[str]:
    percents = [f"P{percent_name(percent)}" for percent, _ in spreads[names[0]].percentiles]
    yield f"{'':26}" + "".join(f"{title:>10}" for title in ("Mean", "Median", "Std", *percents))
    for name in names:
        spread = spreads[name]
        values = (spread.mean, spread.median, spread.deviation, *(value for _, value in spread.percentiles))
        yield f"{_LABELS[name]:26}" + "".join(f"{value:>10.2f}" for value in values)
