"""The forms in which `LLM.generate` takes prompts, brought to one."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Any, TypedDict

from PIL import Image

from tilewise.errors import InvalidMedia, InvalidRequest
from tilewise.foreign.keywords import ForeignKeyword, no_effect, refused, take_all
from tilewise.ignored import Ignored
from tilewise.inputs.media.arrays import IMAGE_EMBEDS, check_no_embeddings, dimensions, is_array, listed, to_picture
from tilewise.inputs.media.cache import check_uuid
from tilewise.inputs.media.fetch import Kind
from tilewise.inputs.media.hosts import short
from tilewise.inputs.media.reader import LOCAL, EncodedPart, MediaOptions, MediaPart, MediaReader
from tilewise.inputs.media.tiling import Media
from tilewise.timing import InputTiming
from tilewise.units import to_python


class _PromptOptions(TypedDict, total=False):
    multi_modal_data: Mapping[str, Any] | None
    """{"image": picture or list, "video": frames or list of them}."""
    mm_processor_kwargs: Mapping[str, Any] | None
    media_io_kwargs: Mapping[str, Any] | None
    multi_modal_uuids: Mapping[str, Any] | None
    """Names to keep media under, in the form of `multi_modal_data`; a later prompt may have None in its place."""
    cache_salt: str | None


class TextPrompt(_PromptOptions, total=False):
    """A prompt of text, in which special tokens are meant."""

    prompt: str | list[str]


class TokensPrompt(_PromptOptions, total=False):
    """A prompt of token ids; `prompt` is the text that results show for it."""

    prompt_token_ids: Sequence[int]
    prompt: str


PromptInput = str | Sequence[int] | TextPrompt | TokensPrompt | Mapping[str, Any]
PromptType = PromptInput
"""vLLM's name for PromptInput."""
_MEDIA: tuple[Kind, ...] = ("image", "video")
_KEYS = ("prompt", "prompt_token_ids", *_PromptOptions.__annotations__)
_URL = re.compile(r"(https?|file|s3|gs|ftp)://|data:[^,]*,", re.IGNORECASE)
_NO_EMBEDDINGS = "Send the text or the token ids, and pictures as they are."
FOREIGN_KEYS: dict[str, ForeignKeyword] = {
    "prompt_embeds": refused(_NO_EMBEDDINGS),
    "prompt_is_token_ids": refused(_NO_EMBEDDINGS),
    "encoder_prompt": refused("InternVL models have no encoder of text: send prompt."),
    "decoder_prompt": refused("InternVL models have no encoder of text: send prompt."),
    "data": refused("Send prompt or prompt_token_ids."),
    "data_format": refused("Send prompt or prompt_token_ids."),
    "token_type_ids": no_effect("InternVL models have one type of tokens"),
    "prompt_token_offsets": no_effect("nothing here reads it"),
}
"""Keys of vLLM's prompts that are not taken."""
_FOREIGN_MEDIA = {
    "audio": refused("InternVL models see pictures and videos.", []),
    "vision_chunk": refused("Send image or video.", []),
}


@dataclass(frozen=True)
class Prompt:
    """One raw prompt with its media, pictures before videos."""

    prompt: str | Sequence[int]
    media: list[Media] = field(default_factory=list)
    processor: dict[str, Any] = field(default_factory=dict)
    cache_salt: str | None = None
    text: str | None = field(default=None, compare=False)
    """Text that results show for ids."""
    arrival: float = field(default_factory=time.monotonic, compare=False)
    """Seconds of the monotonic clock, before the media were read."""
    reading: InputTiming = field(default=InputTiming(), compare=False)


def read_prompts(prompts: Any, reader: MediaReader, ignored: Ignored | None = None) -> list[Prompt]:
    """Read one prompt or several, each a text, token ids or a dict. Raises InvalidRequest for anything else."""
    prompts = to_python(prompts)
    ignored = Ignored() if ignored is None else ignored
    if isinstance(prompts, (str, Mapping)) or _ids(prompts) is not None:
        prompts = [prompts]
    if not isinstance(prompts, Sequence):
        raise InvalidRequest(
            f"prompts must be a text, token ids, a dict or a list of them, got {type(prompts).__name__}."
        )
    return [item for prompt in prompts for item in _read(prompt, reader, ignored)]


def _read(prompt: Any, reader: MediaReader, ignored: Ignored) -> list[Prompt]:
    if isinstance(prompt, str):
        return [Prompt(prompt)]
    if (ids := _ids(prompt)) is not None:
        return [Prompt(ids)]
    if not isinstance(prompt, Mapping):
        raise InvalidRequest(f"A prompt must be a text, token ids or a dict, got {type(prompt).__name__}.")
    take_all(prompt, FOREIGN_KEYS, ignored, _KEYS, "A prompt dict")
    arrival = time.monotonic()
    options = MediaOptions.of(prompt.get("media_io_kwargs"), ignored=ignored)
    reader = reader.timed(options, scope=LOCAL, ignored=ignored)
    data = _mapping(prompt, "multi_modal_data")
    media = _read_media(data, _mapping(prompt, "multi_modal_uuids"), reader, ignored)
    processor = _mapping(prompt, "mm_processor_kwargs")
    salt = prompt.get("cache_salt")
    if salt is not None and not (isinstance(salt, str) and salt):
        raise InvalidRequest(f"cache_salt must be a text that is not empty, got {salt!r:.80}.")
    bodies = _bodies(prompt)
    _check_empty(data, bodies)
    return [Prompt(body, media, processor, salt, text, arrival, reader.watch.timing) for body, text in bodies]


def _check_empty(data: Mapping[str, Any], bodies: Sequence[tuple[str | list[int], str | None]]) -> None:
    """Raise InvalidMedia for an empty list whose marker is in the prompt; without one it means none, as in vLLM."""
    for kind in _MEDIA:
        value = data.get(kind)
        empty = value is not None and hasattr(value, "__len__") and not len(value)
        if empty and any(isinstance(body, str) and f"<{kind}>" in body for body, _ in bodies):
            raise InvalidMedia(f"multi_modal_data: {kind} is empty, and the prompt has <{kind}>: send it.")


def _bodies(prompt: Mapping[str, Any]) -> list[tuple[str | list[int], str | None]]:
    """Return (text or ids, text of ids) of a dict, once for each of its texts."""
    texts, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
    if ids is not None:
        found = _ids(ids)
        if found is None:
            raise InvalidRequest(f"prompt_token_ids must be whole numbers, got {ids!r:.80}.")
        return [(found, texts if isinstance(texts, str) else None)]
    listed = texts if isinstance(texts, (list, tuple)) and texts and isinstance(texts[0], str) else [texts]
    bodies = [text if isinstance(text, str) else _ids(text) for text in listed]
    if None in bodies:
        wrong = listed[bodies.index(None)]
        raise InvalidRequest(f"prompt must be a text (or texts) and prompt_token_ids whole numbers, got {wrong!r:.80}.")
    return [(body, None) for body in bodies if body is not None]


def _mapping(prompt: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = prompt.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise InvalidRequest(f"{key} must be a dict, got {type(value).__name__}.")
    return dict(value or {})


def _ids(value: Any) -> list[int] | None:
    """Return token ids as Python's own numbers, of numpy's and torch's as well; None for anything else."""
    value = to_python(value)
    if not isinstance(value, (list, tuple)) or not value:
        return None
    if all(type(item) is int for item in value):
        return list(value)
    whole = all(isinstance(item, Integral) and not isinstance(item, bool) for item in value)
    return list(map(int, value)) if whole else None


def _read_media(
    data: Mapping[str, Any], uuids: Mapping[str, Any], reader: MediaReader, ignored: Ignored
) -> list[Media]:
    take_all(data, _FOREIGN_MEDIA, ignored, _MEDIA, "multi_modal_data")
    take_all(uuids, _FOREIGN_MEDIA, ignored, _MEDIA, "multi_modal_uuids")
    items: dict[Kind, list[Any]] = {
        "image": _pictures(data.get("image"), reader, ignored),
        "video": _videos(data.get("video"), ignored),
    }
    named = {kind: _names(uuids.get(kind), kind, items[kind]) for kind in _MEDIA}
    for kind in _MEDIA:
        reader.check_count(kind, len(named[kind]))
    return [_medium(kind, item, uuid, reader) for kind in _MEDIA for item, uuid in named[kind]]


def _pictures(value: Any, reader: MediaReader, ignored: Ignored) -> list[Any]:
    """Return pictures as they came; those that came encoded are an `EncodedPart` each."""
    form, named = reader.embeddings, isinstance(value, Mapping) and IMAGE_EMBEDS in value
    if named:
        reader.takes_embeddings("multi_modal_data: image")
        take_all(value, {}, ignored, (IMAGE_EMBEDS,), "multi_modal_data: image")
    if named or (form is not None and form.is_meant(value)):
        return [EncodedPart(array, where=IMAGE_EMBEDS) for array in listed(value)]
    if isinstance(value, (list, tuple)):
        if form is None:
            check_no_embeddings(list(value))
        return [part for item in value for part in _of_list(item, reader, ignored)]
    if dimensions(value) == 4:
        return list(value)
    return [] if value is None else [value]


def _of_list(item: Any, reader: MediaReader, ignored: Ignored) -> list[Any]:
    if isinstance(item, Mapping):
        return _pictures(item, reader, ignored) if IMAGE_EMBEDS in item else [item]
    form = reader.embeddings
    return [EncodedPart(item, where=IMAGE_EMBEDS) if form is not None and form.is_meant(item) else item]


def _names(uuids: Any, kind: Kind, items: list[Any]) -> list[tuple[Any, str | None]]:
    """Return each item with its uuid; without data, items are None."""
    if uuids is None:
        return [(item, None) for item in items]
    names = [uuids] if isinstance(uuids, str) else list(uuids) if isinstance(uuids, (list, tuple)) else None
    if names is None:
        raise InvalidRequest(f"multi_modal_uuids: {kind} must be a text or a list, got {type(uuids).__name__}.")
    items = items or [None] * len(names)
    if len(names) != len(items):
        raise InvalidRequest(f"multi_modal_uuids: {kind} has {len(names)} entries for {len(items)} {kind}(s).")
    return [(item, check_uuid(name, f"multi_modal_uuids: {kind}")) for item, name in zip(items, names, strict=True)]


def _medium(kind: Kind, item: Any, uuid: str | None, reader: MediaReader) -> Media:
    if item is None:
        if uuid is None:
            raise InvalidRequest(f"multi_modal_data: {kind} is None: send it, or the uuid of one sent before.")
        part = MediaPart(None, kind, uuid)
        return reader.picture(part) if kind == "image" else reader.video(part)
    if isinstance(item, EncodedPart):
        return reader.encoded_picture(replace(item, uuid=uuid))
    found = _picture(item, reader) if kind == "image" else _frames(item, reader)
    if uuid is not None:
        reader.keep_decoded(kind, uuid, [found] if isinstance(found, Image.Image) else found)
    return found


def _videos(value: Any, ignored: Ignored) -> list[Any]:
    """List the videos of a value.

    One video is an array of frames, a list of pictures, a path or (frames, metadata); a list may hold several.
    """
    if value is None:
        return []
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Mapping):
        ignored.add("video metadata", "all frames that came are shown, each under its number")
        return [value[0]]
    if is_array(value):
        return list(value) if dimensions(value) == 5 else [value]
    if isinstance(value, (str, Path)):
        return [value]
    if not isinstance(value, (list, tuple)):
        raise InvalidRequest(f"A video must be an array, a list of pictures or a path, got {type(value).__name__}.")
    if value and all(isinstance(item, Image.Image) or dimensions(item) in (2, 3) for item in value):
        return [value]
    # An entry without frames is a video that cannot be read, not one that is not there.
    return [item for entry in value for item in (_videos(entry, ignored) or [entry])]


def _picture(item: Any, reader: MediaReader) -> Image.Image:
    if isinstance(item, Image.Image):
        return reader.given(item)
    if is_array(item):
        return to_picture(item)
    if isinstance(item, (str, Path)):
        return reader.open_image(_path(item, "fetch_image"))
    raise InvalidRequest(f"A picture must be a PIL image, an array or a path, got {type(item).__name__}.")


def _frames(item: Any, reader: MediaReader) -> list[Image.Image]:
    if isinstance(item, (str, Path)):
        return reader.read_video(_path(item, "fetch_video"))
    if is_array(item) and dimensions(item) != 4:
        raise InvalidRequest(
            f"A video as an array must be [frames, H, W, C] or [frames, C, H, W], got {list(item.shape)}."
        )
    if len(item) == 0:
        raise InvalidMedia("multi_modal_data: a video has no frames: send at least one, or leave the video out.")
    return [_picture(frame, reader) for frame in item]


def _path(item: str | Path, fetch: str) -> Path:
    """Return a path. Raises InvalidMedia for a URL, which would be a path of no file."""
    if isinstance(item, str) and _URL.match(item):
        raise InvalidMedia(
            f"multi_modal_data takes no URLs, got {short(item)!r}: open it with {fetch} of tilewise.multimodal.utils, "
            "or send it in a message of LLM.chat."
        )
    return Path(item)
