"""OpenAI-style messages (lists of content parts) to messages and media."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from tilewise.errors import InvalidRequest, did_you_mean
from tilewise.inputs.images import ImageLimits, open_image
from tilewise.inputs.media import MediaAccess
from tilewise.inputs.templates import ROLES, Message
from tilewise.inputs.tool_text import read_calls
from tilewise.inputs.video import FrameChoice, read_video
from tilewise.timing import Stopwatch

_ROLES = (*ROLES, "tool")
_PARTS = ("text", "image_url", "video_url", "image_pil", "video_frames")


@dataclass(frozen=True)
class MediaReader:
    """Opens the media that requests name. `limits` are pictures and videos a prompt (`limit_mm_per_prompt`)."""

    access: MediaAccess = field(default_factory=MediaAccess)
    image_limits: ImageLimits = field(default_factory=ImageLimits)
    limits: dict[str, int] = field(default_factory=dict)
    frames: FrameChoice = field(default_factory=FrameChoice)
    watch: Stopwatch = field(default_factory=Stopwatch)
    """Told what reading takes; a request has one of its own."""

    def timed(self) -> MediaReader:
        """For one request."""
        return replace(self, watch=Stopwatch())

    def check_count(self, kind: str, count: int) -> None:
        limit = self.limits.get(kind)
        if limit is not None and count > limit:
            raise InvalidRequest(f"At most {limit} {kind}(s) may be provided in one prompt. {count} were given.")

    def image(self, url: str) -> Image.Image:
        return self.open_image(self._fetch(url))

    def video(self, url: str) -> list[Image.Image]:
        return self.read_video(self._fetch(url))

    def _fetch(self, url: str) -> bytes:
        with self.watch.downloading():
            return self.access.fetch(url)

    def open_image(self, data: bytes | Path) -> Image.Image:
        with self.watch.decoding():
            return open_image(data, self.image_limits)

    def read_video(self, data: bytes | Path) -> list[Image.Image]:
        with self.watch.decoding():
            return read_video(data, self.frames)


def read_messages(
    messages: Sequence[dict[str, Any]], reader: MediaReader
) -> tuple[list[Message], list[Image.Image | list[Image.Image]]]:
    """Messages of the OpenAI form to `Message`s and their media, message by message, pictures before videos.

    Counts are checked before anything is fetched. Several text parts of one message are joined by newlines.
    """
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise InvalidRequest(f"messages must be a list of messages, got {type(messages).__name__}.")
    if not messages:
        raise InvalidRequest("messages is empty: it needs at least one message.")
    split = [_split(message, number) for number, message in enumerate(messages)]
    reader.check_count("image", sum(len(parts.images) for parts in split))
    reader.check_count("video", sum(len(parts.videos) for parts in split))
    parsed: list[Message] = []
    media: list[Image.Image | list[Image.Image]] = []
    for parts in split:
        images = [reader.image(item) if isinstance(item, str) else item for item in parts.images]
        videos = [reader.video(item) if isinstance(item, str) else item for item in parts.videos]
        lengths = tuple(map(len, videos))
        parsed.append(Message(parts.role, "\n".join(parts.texts), len(images), lengths, parts.calls))
        media += [*images, *videos]
    return parsed, media


@dataclass
class _Parts:
    role: Any
    texts: list[str] = field(default_factory=list)
    images: list[str | Image.Image] = field(default_factory=list)
    videos: list[str | list[Image.Image]] = field(default_factory=list)
    calls: tuple[str, ...] = ()


def _split(message: dict[str, Any], number: int) -> _Parts:
    where = f"messages[{number}]"
    if not isinstance(message, Mapping):
        raise InvalidRequest(f"{where} must be an object with role and content, got {type(message).__name__}.")
    role = message.get("role")
    if role not in _ROLES:
        raise InvalidRequest(f"{where}: role must be one of {', '.join(_ROLES)}, got {role!r:.80}.")
    if role == "system" and number:
        raise InvalidRequest(f"{where}: only the first message may have the role system.")
    parts = _Parts(role)
    if message.get("tool_calls"):
        if role != "assistant":
            raise InvalidRequest(f"{where}: only the assistant has tool_calls, role is {role}.")
        parts.calls = read_calls(message["tool_calls"], where)
    content = message.get("content")
    if content is None or isinstance(content, str):
        parts.texts.append(content or "")
        return parts
    if not isinstance(content, Sequence):
        raise InvalidRequest(f"{where}: content must be a text or a list of parts, got {type(content).__name__}.")
    for index, part in enumerate(content):
        _add_part(parts, part, f"{where}.content[{index}]")
    return parts


def _add_part(parts: _Parts, part: Any, where: str) -> None:
    if isinstance(part, str):
        part = {"type": "text", "text": part}
    if not isinstance(part, Mapping):
        raise InvalidRequest(f"{where} must be a text or an object, got {type(part).__name__}.")
    kind = part.get("type") or next((name for name in _PARTS if name in part), None)
    if kind not in _PARTS:
        hint = did_you_mean(str(kind), _PARTS)
        raise InvalidRequest(f"{where}: type must be one of {', '.join(_PARTS)}, got {kind!r}.{hint}")
    value = part.get(kind)
    if kind == "image_pil":
        if not isinstance(value, Image.Image):
            raise InvalidRequest(f"{where}: image_pil needs a PIL image, got {type(value).__name__}.")
        parts.images.append(value)
        return
    if kind == "video_frames":
        if not isinstance(value, list) or not all(isinstance(frame, Image.Image) for frame in value):
            raise InvalidRequest(f"{where}: video_frames needs a list of PIL images, got {value!r:.80}.")
        parts.videos.append(value)
        return
    url = value.get("url") if isinstance(value, dict) else value
    if not isinstance(url, str):
        raise InvalidRequest(f"{where}: {kind} needs a string, got {type(url).__name__}.")
    {"text": parts.texts, "image_url": parts.images, "video_url": parts.videos}[kind].append(url)  # type: ignore[attr-defined]
