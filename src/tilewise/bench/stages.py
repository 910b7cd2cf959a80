"""What a request's media take before the engine has them, stage by stage. Each stage is measured by itself, and so is
the whole: that the parts nearly add up to it shows that none is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from PIL import Image

from tilewise.inputs.chat import read_messages
from tilewise.inputs.images import LimitedPicture, Tiling, tile_image, to_rgb
from tilewise.inputs.media_cache import picture_digest
from tilewise.inputs.media_reader import Media, MediaReader
from tilewise.inputs.prepare import Preparer, tile_digest
from tilewise.inputs.templates import Message
from tilewise.sampling_params import SamplingParams

Result = TypeVar("Result")
STAGES = ("decode", "hash", "tiling", "prompt", "total")


@dataclass(frozen=True, slots=True)
class Stages:
    """Seconds, and what they were for."""

    decode: float
    """Files to pixels, base64 and all."""
    hash: float
    """Digests of pictures, by which one that was cut before is found, and of tiles."""
    tiling: float
    prompt: float
    """Template and tokenizer."""
    total: float
    """All of it in one go, as a request has it."""
    tiles: int
    prompt_tokens: int


def measure_stages(conversation: Sequence[dict[str, Any]], preparer: Preparer, reader: MediaReader) -> Stages:
    decode, (messages, media) = _timed(lambda: read_messages(conversation, reader.timed()))
    pictures = list(_pictures(media, preparer))
    turned = preparer.options.exif_orientation
    tiling, cut = _timed(lambda: [tile_image(to_rgb(image, turned), rule, preparer.resize) for image, rule in pictures])
    hashing, _ = _timed(lambda: [picture_digest(image, rule, turned) for image, rule in pictures])
    digests, _ = _timed(lambda: [tile_digest(tile) for tiles in cut for tile in tiles])
    prompt, _ = _timed(lambda: _ids(messages, preparer))
    whole, request = _timed(lambda: preparer.chat(messages, media, SamplingParams(max_tokens=1)))
    tiles = sum(map(len, cut))
    return Stages(decode, hashing + digests, tiling, prompt, decode + whole, tiles, len(request.prompt_ids))


def _pictures(media: Sequence[Media], preparer: Preparer) -> Iterator[tuple[Image.Image, Tiling]]:
    """All that are cut, frames too, and how."""
    pictures = sum(not isinstance(item, list) for item in media)
    of_picture, of_frame = preparer.options.tilings(preparer.spec.tiling, pictures)
    for item in media:
        if isinstance(item, list):
            yield from ((frame, of_frame) for frame in item)
        elif isinstance(item, LimitedPicture):
            yield item.image, item.tiling(of_picture)
        elif isinstance(item, Image.Image):
            yield item, of_picture


def _ids(messages: Sequence[Message], preparer: Preparer) -> object:
    return preparer.chat_ids(preparer.spec.template.render(messages, False, (), "open"))


def _timed(work: Callable[[], Result]) -> tuple[float, Result]:
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found
