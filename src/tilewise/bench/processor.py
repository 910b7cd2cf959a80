"""The benchmark of what happens to media: each stage before the engine, the wait for tiles, and the whole way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from PIL import Image

from tilewise.bench import Say
from tilewise.bench.dataset_options import DatasetChoice
from tilewise.bench.datasets import DatasetSource
from tilewise.bench.figures import Spread, read_percents
from tilewise.bench.options import ProcessorOptions
from tilewise.bench.tokenizer import LocalTokenizer
from tilewise.console import progress_bar
from tilewise.entrypoints.llm import LLM
from tilewise.entrypoints.setup import media_reader
from tilewise.inputs.media.cache import MediaCache, picture_digest
from tilewise.inputs.media.images import to_rgb
from tilewise.inputs.media.reader import MediaReader
from tilewise.inputs.media.tiling import LimitedPicture, Media, Tiling, tile_digest, tile_image
from tilewise.inputs.messages import read_messages
from tilewise.inputs.options import tilings
from tilewise.inputs.pieces import Message
from tilewise.inputs.prepare import Preparer
from tilewise.sampling_params import SamplingParams

Result = TypeVar("Result")
STAGES = ("decode", "hash", "tiling", "prompt", "total")


@dataclass(frozen=True, slots=True)
class Stages:
    """The seconds that each stage of one request took before the engine, and its tiles and tokens."""

    decode: float
    """Seconds from files to pixels, base64 and all."""
    hash: float
    """Seconds for digests of pictures, by which one that was cut before is found, and of tiles."""
    tiling: float
    prompt: float
    """Seconds for template and tokenizer."""
    total: float
    """Seconds of all of it in one go, as a request has it."""
    tiles: int
    prompt_tokens: int


def measure_stages(conversation: Sequence[dict[str, Any]], preparer: Preparer, reader: MediaReader) -> Stages:
    decode, (messages, media) = _timed(lambda: read_messages(conversation, reader.timed()))
    pictures = list(_pictures(media, preparer))
    turned = preparer.config.exif_orientation
    tiling, cut = _timed(lambda: [tile_image(to_rgb(image, turned), rule, preparer.resize) for image, rule in pictures])
    hashing, _ = _timed(lambda: [picture_digest(image, rule, turned) for image, rule in pictures])
    digests, _ = _timed(lambda: [tile_digest(tile) for tiles in cut for tile in tiles])
    prompt, _ = _timed(lambda: _ids(messages, preparer))
    whole, request = _timed(lambda: preparer.chat(messages, media, SamplingParams(max_tokens=1)))
    tiles = sum(map(len, cut))
    return Stages(decode, hashing + digests, tiling, prompt, decode + whole, tiles, len(request.prompt_ids))


def _pictures(media: Sequence[Media], preparer: Preparer) -> Iterator[tuple[Image.Image, Tiling]]:
    """Yield the pictures that are cut into tiles, frames of videos too, each with its tiling."""
    pictures = sum(not isinstance(item, list) for item in media)
    of_picture, of_frame = tilings(preparer.spec.tiling, pictures, preparer.config)
    for item in media:
        if isinstance(item, list):
            yield from ((frame, of_frame) for frame in item)
        elif isinstance(item, LimitedPicture) and isinstance(item.image, Image.Image):
            yield item.image, item.tiling(of_picture)
        elif isinstance(item, Image.Image):
            yield item, of_picture


def _ids(messages: Sequence[Message], preparer: Preparer) -> object:
    return preparer.chat_ids(preparer.spec.template.render(messages, False, (), "open"))


def _timed(work: Callable[[], Result]) -> tuple[float, Result]:
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


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


def run_processor(
    options: ProcessorOptions, engine: dict[str, Any], say: Say = print, progress: bool = True
) -> dict[str, Any]:
    """Run the benchmark, and return the result as --output-json has it, in milliseconds."""
    percents = read_percents(options.metric_percentiles)
    source = DatasetSource(options, DatasetChoice(dataset_name="random-mm"))
    with LLM(**engine) as llm:
        requests = source.requests(LocalTokenizer(llm.inputs.tokenizer))
        conversations = [request.conversation for request in requests]
        sampling = [
            SamplingParams(max_tokens=request.output_tokens, ignore_eos=True, temperature=0) for request in requests
        ]
        stages = _stages(options.num_warmups, llm, conversations, progress)
        outputs = llm.chat(conversations, sampling, use_tqdm=progress)
    values = {name: [getattr(stage, name) for stage in stages] for name in STAGES}
    values["encoder"] = [output.timing.encode or 0.0 for output in outputs]
    values["e2el"] = [output.timing.total or 0.0 for output in outputs]
    spreads = {name: Spread.of(found, percents).scaled(1000) for name, found in values.items()}
    for line in _lines(spreads, stages):
        say(line)
    return {
        "num_requests": len(requests),
        "total_tiles": sum(stage.tiles for stage in stages),
        "total_prompt_tokens": sum(stage.prompt_tokens for stage in stages),
        **{f"{name}_ms": spread.as_json() for name, spread in spreads.items()},
    }


def _stages(warmups: int, llm: LLM, conversations: Sequence[list[dict[str, Any]]], progress: bool) -> list[Stages]:
    """Measure the stages of each conversation. Nothing is kept between requests, so every picture is cut."""
    preparer = replace(llm.inputs, cache=MediaCache(0))
    reader = media_reader(llm.config)
    found = []
    with progress_bar("Requests", len(conversations), progress) as advance:
        for _ in range(warmups):
            measure_stages(conversations[0], preparer, reader)
        for conversation in conversations:
            found.append(measure_stages(conversation, preparer, reader))
            advance(1)
    return found


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
    titles = (name.capitalize() for name in spreads[names[0]].as_json())
    yield f"{'':26}" + "".join(f"{title:>10}" for title in titles)
    for name in names:
        yield f"{_LABELS[name]:26}" + "".join(f"{value:>10.2f}" for value in spreads[name].as_json().values())
