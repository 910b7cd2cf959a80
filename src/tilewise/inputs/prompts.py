"""The forms in which `LLM.generate` takes prompts, brought to one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tilewise.errors import InvalidRequest, UnknownOption
from tilewise.inputs.media_reader import LOCAL, MediaReader
from tilewise.timing import InputTiming

PromptInput = str | Sequence[int] | Mapping[str, Any]
_KEYS = ("prompt", "prompt_token_ids", "multi_modal_data", "mm_processor_kwargs", "cache_salt")
_MEDIA = ("image", "video")


@dataclass(frozen=True)
class Prompt:
    """One raw prompt with its media, pictures before videos."""

    prompt: str | Sequence[int]
    media: list[Image.Image | list[Image.Image]] = field(default_factory=list)
    processor: dict[str, Any] = field(default_factory=dict)
    cache_salt: str | None = None
    arrival: float = field(default_factory=time.monotonic, compare=False)
    """Before its media were read."""
    reading: InputTiming = field(default=InputTiming(), compare=False)


def read_prompts(prompts: Any, reader: MediaReader) -> list[Prompt]:
    """One prompt or several, each a text, token ids or a dict. Raises InvalidRequest for anything else."""
    if isinstance(prompts, (str, Mapping)) or _is_ids(prompts):
        prompts = [prompts]
    if not isinstance(prompts, Sequence):
        raise InvalidRequest(
            f"prompts must be a text, token ids, a dict or a list of them, got {type(prompts).__name__}."
        )
    return [item for prompt in prompts for item in _read(prompt, reader)]


def _read(prompt: Any, reader: MediaReader) -> list[Prompt]:
    if isinstance(prompt, str) or _is_ids(prompt):
        return [Prompt(prompt)]
    if not isinstance(prompt, Mapping):
        raise InvalidRequest(f"A prompt must be a text, token ids or a dict, got {type(prompt).__name__}.")
    for key in prompt:
        if key not in _KEYS:
            raise UnknownOption.named(str(key), _KEYS, "A prompt dict")
    arrival, reader = time.monotonic(), reader.timed(scope=LOCAL)
    media = _read_media(_mapping(prompt, "multi_modal_data"), reader)
    processor = _mapping(prompt, "mm_processor_kwargs")
    body = prompt.get("prompt", prompt.get("prompt_token_ids"))
    if "prompt" not in prompt and isinstance(body, str):
        raise InvalidRequest(f"prompt_token_ids must be whole numbers, got {body!r:.80}.")
    texts = body if isinstance(body, (list, tuple)) and body and isinstance(body[0], str) else [body]
    for text in texts:
        if not isinstance(text, str) and not _is_ids(text):
            raise InvalidRequest(
                f"prompt must be a text (or texts) and prompt_token_ids whole numbers, got {text!r:.80}."
            )
    salt = prompt.get("cache_salt")
    if salt is not None and not (isinstance(salt, str) and salt):
        raise InvalidRequest(f"cache_salt must be a text that is not empty, got {salt!r:.80}.")
    return [Prompt(text, media, processor, salt, arrival, reader.watch.timing) for text in texts]


def _mapping(prompt: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = prompt.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise InvalidRequest(f"{key} must be a dict, got {type(value).__name__}.")
    return dict(value or {})


def _is_ids(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(type(item) is int for item in value)


def _read_media(data: Mapping[str, Any], reader: MediaReader) -> list[Image.Image | list[Image.Image]]:
    for kind in data:
        if kind not in _MEDIA:
            raise UnknownOption.named(str(kind), _MEDIA, "multi_modal_data")
    images, videos = _as_list(data.get("image")), _videos(data.get("video"))
    reader.check_count("image", len(images))
    reader.check_count("video", len(videos))
    return [*(_picture(item, reader) for item in images), *(_frames(item, reader) for item in videos)]


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _videos(value: Any) -> list[Any]:
    """One video is an array of frames, a list of pictures, a path or (frames, metadata); a list may hold several."""
    if value is None:
        return []
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Mapping):
        return [value[0]]
    if isinstance(value, (np.ndarray, str, Path)):
        return [value]
    if not isinstance(value, (list, tuple)):
        raise InvalidRequest(f"A video must be an array, a list of pictures or a path, got {type(value).__name__}.")
    one = bool(value) and all(isinstance(item, Image.Image) for item in value)
    return [value] if one else [item for entry in value for item in _videos(entry)]


def _picture(item: Any, reader: MediaReader) -> Image.Image:
    if isinstance(item, Image.Image):
        return item
    if isinstance(item, np.ndarray):
        if item.dtype != np.uint8 or item.ndim != 3 or item.shape[2] != 3:
            raise InvalidRequest(f"A picture as an array must be uint8 [H, W, 3], got {item.dtype} {list(item.shape)}.")
        return Image.fromarray(item)
    if isinstance(item, (str, Path)):
        return reader.open_image(Path(item))
    raise InvalidRequest(f"A picture must be a PIL image, an array or a path, got {type(item).__name__}.")


def _frames(item: Any, reader: MediaReader) -> list[Image.Image]:
    if isinstance(item, (str, Path)):
        return reader.read_video(Path(item))
    return [_picture(frame, reader) for frame in item]
