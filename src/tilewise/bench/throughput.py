"""How much gets done when everything is asked at once. Tokens of pictures count: they are computed like all others."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tilewise.bench.datasets.sources import Source
from tilewise.bench.samples import SampleRequest
from tilewise.bench.words import LocalWords
from tilewise.errors import InvalidConfig
from tilewise.llm import LLM
from tilewise.sampling_params import SamplingParams
from tilewise.types import RequestOutput


@dataclass(frozen=True)
class ThroughputBench:
    source: Source
    engine: dict[str, Any] = field(default_factory=dict)
    n: int = 1
    chat: bool = False
    """Every prompt as a conversation. One with pictures always is."""
    progress: bool = True


def run_throughput(bench: ThroughputBench, say: Callable[[str], None] = print) -> dict[str, Any]:
    """The result, as --output-json has it."""
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
    """An answer that the context cut short is no measure of anything. Raises InvalidConfig."""
    for request, output in zip(requests, outputs, strict=True):
        wanted = request.output_tokens
        shortest = min(len(answer.token_ids) for answer in output.outputs)
        if wanted is not None and shortest < wanted:
            raise InvalidConfig(
                f"A prompt of {output.usage.prompt_tokens} tokens leaves {shortest} of the {wanted} asked for: "
                f"the context holds {context}. Ask for fewer, or for a larger --max-model-len."
            )


def _totals(outputs: Sequence[RequestOutput]) -> tuple[int, int, int, int]:
    """Tokens of prompts, of answers and of pictures, and tiles."""
    usages = [output.usage for output in outputs]
    names = ("prompt_tokens", "completion_tokens", "image_tokens", "tiles")
    prompt, answered, image, tiles = (sum(getattr(usage, name) for usage in usages) for name in names)
    return prompt, answered, image, tiles
