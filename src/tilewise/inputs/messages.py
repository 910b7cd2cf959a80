"""OpenAI-style messages and their content parts: every spelling of each, checked before anything is fetched."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args

from PIL import Image

from tilewise.errors import InvalidMedia, InvalidRequest, did_you_mean
from tilewise.ignored import is_near_miss, other_spelling
from tilewise.inputs.arrays import is_array
from tilewise.inputs.embeddings import IMAGE_EMBEDS
from tilewise.inputs.images import lax_number
from tilewise.inputs.media import Kind
from tilewise.inputs.media_cache import check_uuid
from tilewise.inputs.media_reader import EncodedPart, Media, MediaPart, Picture
from tilewise.inputs.media_reader import MediaReader as MediaReader
from tilewise.inputs.templates import ROLES, MediaPlace, Message
from tilewise.inputs.tool_text import read_calls
from tilewise.types import Detail

_ROLES = (*ROLES, "developer", "tool")
_Read = TypeVar("_Read")
_Part = TypeVar("_Part", MediaPart, EncodedPart)
_CUSTOM_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_. -]{0,63}")


def read_messages(messages: Sequence[dict[str, Any]], reader: MediaReader) -> tuple[list[Message], list[Media]]:
    """Turn messages of the OpenAI form into `Message`s and media, message by message, pictures before videos.

    Counts are checked before anything is fetched. Several text parts of one message are joined by newlines, unless the
    template orders parts in another way. The role developer counts as system.
    """
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise InvalidRequest(f"messages must be a list of messages, got {type(messages).__name__}.")
    if not messages:
        raise InvalidRequest("messages is empty: it needs at least one message.")
    split = [_split(message, number) for number, message in enumerate(messages)]
    reader.check_count("image", sum(len(parts.images) for parts in split))
    reader.check_count("video", sum(len(parts.videos) for parts in split))
    for part in (item for parts in split for item in parts.images if isinstance(item, EncodedPart)):
        reader.takes_embeddings(part.where)
    parsed: list[Message] = []
    media: list[Media] = []
    for parts in split:
        images = [read_picture(item, reader) for item in parts.images]
        videos = [_read(item, reader.video) if isinstance(item, MediaPart) else item for item in parts.videos]
        lengths = tuple(map(len, videos))
        text, role = "\n".join(parts.texts), "system" if parts.role == "developer" else parts.role
        parsed.append(Message(role, text, len(images), lengths, parts.calls, parts.order))
        media += [*images, *videos]
    return parsed, media


def read_picture(item: MediaPart | EncodedPart | Image.Image, reader: MediaReader) -> Picture:
    """Open a picture of a message. Raises InvalidRequest with its place."""
    if isinstance(item, EncodedPart):
        return _read(item, reader.encoded_picture)
    return _read(item, reader.picture) if isinstance(item, MediaPart) else reader.given(item)


def _read(part: _Part, read: Callable[[_Part], _Read]) -> _Read:
    try:
        return read(part)
    except InvalidMedia as error:
        raise error.at(part.where) from None


def check_role(role: Any, where: str) -> None:
    """Raise InvalidRequest for a role that no template could write; each template says which others it takes."""
    custom = isinstance(role, str) and bool(_CUSTOM_ROLE.fullmatch(role)) and role != "function"
    if role not in _ROLES and (not custom or is_near_miss(role, _ROLES)):
        meant = other_spelling(str(role), _ROLES)
        hint = f" Did you mean {meant}?" if meant else did_you_mean(str(role), _ROLES)
        hint = " Its successor is tool." if role == "function" else hint
        raise InvalidRequest(
            f"{where}: role must be one of {', '.join(_ROLES)}, or a name of letters and digits where the model's "
            f"template takes any, got {role!r:.80}.{hint}"
        )


def _split(message: dict[str, Any], number: int) -> MessageParts:
    where = f"messages[{number}]"
    if not isinstance(message, Mapping):
        raise InvalidRequest(f"{where} must be an object with role and content, got {type(message).__name__}.")
    role = message.get("role")
    check_role(role, where)
    parts = MessageParts(role)
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
        parts.add(part, f"{where}.content[{index}]")
    return parts


_KINDS: dict[str, Kind] = {"image_url": "image", "video_url": "video"}
TILING = ("max_dynamic_patch", "min_dynamic_patch")
_PARTS = ("text", "image_url", "video_url", "image_pil", "video_frames", "image_embeds")


@dataclass
class MessageParts:
    """The parts of one message, sorted; pictures and videos are open already, or are to be read."""

    role: Any
    texts: list[str] = field(default_factory=list)
    images: list[MediaPart | EncodedPart | Image.Image] = field(default_factory=list)
    videos: list[MediaPart | list[Image.Image]] = field(default_factory=list)
    calls: tuple[str, ...] = ()
    """Tool calls of the assistant, each a JSON text."""
    sent: list[str | MediaPlace] = field(default_factory=list)
    """Texts and media in the order in which they came."""

    @property
    def order(self) -> tuple[str | MediaPlace, ...]:
        """Texts and media for `Message.parts`; empty where every `PartsOrder` gives the same prompt."""
        kinds = ["text" if isinstance(part, str) else part.kind for part in self.sent]
        usual = ["image"] * len(self.images) + ["video"] * len(self.videos) + ["text"] * min(1, len(self.texts))
        return () if kinds == usual else tuple(self.sent)

    def add(self, part: Any, where: str) -> None:
        """Add a part of the content. Raises InvalidRequest, naming `where`."""
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        if not isinstance(part, Mapping):
            raise InvalidRequest(f"{where} must be a text or an object, got {type(part).__name__}.")
        kind = part.get("type") or next((name for name in _PARTS if name in part), None)
        if kind not in _PARTS:
            hint = did_you_mean(str(kind), _PARTS)
            raise InvalidRequest(f"{where}: type must be one of {', '.join(_PARTS)}, got {kind!r:.80}.{hint}")
        value = part.get(kind)
        if kind == "text":
            self.texts.append(_text(value, where))
            self.sent.append(self.texts[-1])
            return
        if kind == "image_pil":
            self.images.append(_picture(value, where))
        elif kind == "video_frames":
            self.videos.append(_frames(value, where))
        elif kind == "image_url":
            self.images.append(_media(part, kind, where))
        elif kind == "image_embeds":
            self.images.append(_encoded(part, where))
        else:
            self.videos.append(_media(part, kind, where))
        self.sent.append(MediaPlace("image" if kind.startswith("image") else "video"))


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{where}: text needs a string, got {type(value).__name__}.")
    return value


def _picture(value: Any, where: str) -> Image.Image:
    if not isinstance(value, Image.Image):
        raise InvalidRequest(f"{where}: image_pil needs a PIL image, got {type(value).__name__}.")
    return value


def _frames(value: Any, where: str) -> list[Image.Image]:
    if not isinstance(value, list) or not all(isinstance(frame, Image.Image) for frame in value):
        raise InvalidRequest(f"{where}: video_frames needs a list of PIL images, got {value!r:.80}.")
    if not value:
        raise InvalidMedia(f"{where}: video_frames has no frames: send at least one.")
    return value


def _encoded(part: Mapping[str, Any], where: str) -> EncodedPart:
    value = part.get(IMAGE_EMBEDS)
    value = value.get(IMAGE_EMBEDS) if isinstance(value, Mapping) else value
    uuid = check_uuid(part.get("uuid"), where)
    if not (isinstance(value, str) or is_array(value) or (value is None and uuid is not None)):
        raise InvalidRequest(
            f"{where}: image_embeds needs a file of a tensor in base64, got {type(value).__name__}; or a uuid of a "
            "picture that was sent before."
        )
    return EncodedPart(value, uuid, where)


def _media(part: Mapping[str, Any], kind: str, where: str) -> MediaPart:
    value = part.get(kind)
    options = value if isinstance(value, Mapping) else {}
    url = options.get("url") if isinstance(value, Mapping) else value
    uuid = check_uuid(part.get("uuid", options.get("uuid")), where)
    if not (isinstance(url, str) or (url is None and uuid is not None)):
        raise InvalidRequest(f"{where}: {kind} needs a string, got {type(url).__name__}.")
    detail = _detail(options.get("detail", part.get("detail")), where)
    return MediaPart(url, _KINDS[kind], uuid, detail, _tiling(part, options, kind, where), where)


def _tiling(part: Mapping[str, Any], inner: Mapping[str, Any], kind: str, where: str) -> tuple[tuple[str, int], ...]:
    """Return how one picture is cut; that stands beside its URL, as LMDeploy and SGLang have it, or in the part."""
    given = {name: inner.get(name, part.get(name)) for name in TILING}
    options = {name: lax_number(value) for name, value in given.items() if value is not None}
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidRequest(f"{where}: {name} must be a whole number from 1 on, got {value!r:.80}.")
        if kind != "image_url" and value != 1:
            raise InvalidRequest(f"{where}: {name} must be 1, as frames of videos are one tile each, got {value}.")
    return tuple(options.items()) if kind == "image_url" else ()


def _detail(value: Any, where: str) -> Detail | None:
    if value is not None and value not in get_args(Detail):
        raise InvalidRequest(f"{where}: detail must be one of {', '.join(get_args(Detail))}, got {value!r:.80}.")
    return value  # type: ignore[no-any-return]
