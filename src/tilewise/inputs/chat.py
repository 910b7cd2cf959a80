"""OpenAI-style messages (lists of content parts) to messages and media."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from PIL import Image

from tilewise.errors import InvalidMedia, InvalidRequest, did_you_mean
from tilewise.ignored import is_near_miss, other_spelling
from tilewise.inputs.media_reader import EncodedPart, Media, MediaPart, Picture
from tilewise.inputs.media_reader import MediaReader as MediaReader
from tilewise.inputs.parts import Parts
from tilewise.inputs.templates import ROLES, Message
from tilewise.inputs.tool_text import read_calls

_ROLES = (*ROLES, "developer", "tool")
_Read = TypeVar("_Read")
_Part = TypeVar("_Part", MediaPart, EncodedPart)
_CUSTOM_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_. -]{0,63}")


def read_messages(messages: Sequence[dict[str, Any]], reader: MediaReader) -> tuple[list[Message], list[Media]]:
    """Messages of the OpenAI form to `Message`s and their media, message by message, pictures before videos.

    Counts are checked before anything is fetched. Several text parts of one message are joined by newlines, unless the
    template orders parts in another way. A developer is the system.
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
    """A picture of a message, opened. Raises InvalidRequest with its place."""
    if isinstance(item, EncodedPart):
        return _read(item, reader.encoded_picture)
    return _read(item, reader.picture) if isinstance(item, MediaPart) else reader.given(item)


def _read(part: _Part, read: Callable[[_Part], _Read]) -> _Read:
    try:
        return read(part)
    except InvalidMedia as error:
        raise error.at(part.where) from None


def check_role(role: Any, where: str) -> None:
    """Raises InvalidRequest for what no template could write; which of them take a role of its own, they say."""
    custom = isinstance(role, str) and bool(_CUSTOM_ROLE.fullmatch(role)) and role != "function"
    if role not in _ROLES and (not custom or is_near_miss(role, _ROLES)):
        meant = other_spelling(str(role), _ROLES)
        hint = f" Did you mean {meant}?" if meant else did_you_mean(str(role), _ROLES)
        hint = " Its successor is tool." if role == "function" else hint
        raise InvalidRequest(
            f"{where}: role must be one of {', '.join(_ROLES)}, or a name of letters and digits where the model's "
            f"template takes any, got {role!r:.80}.{hint}"
        )


def _split(message: dict[str, Any], number: int) -> Parts:
    where = f"messages[{number}]"
    if not isinstance(message, Mapping):
        raise InvalidRequest(f"{where} must be an object with role and content, got {type(message).__name__}.")
    role = message.get("role")
    check_role(role, where)
    parts = Parts(role)
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
