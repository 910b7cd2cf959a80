"""OpenAI-style messages and their content parts: every spelling of each, checked before anything is fetched.

`parse_messages` checks, `open_messages` fetches and decodes. What a server and a program hold differently is in
`MessageRules`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args

from PIL import Image

from tilewise.errors import InvalidField, InvalidMedia, did_you_mean
from tilewise.ignored import is_near_miss, other_spelling
from tilewise.inputs.media.arrays import IMAGE_EMBEDS, is_array
from tilewise.inputs.media.cache import check_uuid
from tilewise.inputs.media.reader import EncodedPart, MediaPart, MediaReader
from tilewise.inputs.media.tiling import Media, Picture, lax_number
from tilewise.inputs.pieces import ROLES, MediaPlace, Message
from tilewise.inputs.tool_text import read_calls
from tilewise.types import Detail

_ROLES = (*ROLES, "developer", "tool")
_CUSTOM_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_. -]{0,63}")
_KINDS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "image_url": "image_url",
    "input_image": "image_url",
    "video_url": "video_url",
    "image_pil": "image_pil",
    "video_frames": "video_frames",
    IMAGE_EMBEDS: IMAGE_EMBEDS,
}
"""Types of parts, each with the key that its content stands under; clients of OpenAI's have several for one."""
_NAMED = ("text", "image_url", "video_url", "image_pil", "video_frames", IMAGE_EMBEDS)
"""The types that errors offer."""
_TILING = ("max_dynamic_patch", "min_dynamic_patch")
MEDIUM_KEYS = ("url", "uuid", "detail", *_TILING)
"""Keys of a picture or video, which stand beside its URL, or in the part, as LMDeploy and SGLang have it."""
MAX_PARTS = 2**14
"""Most parts of a conversation, a text alone being one: no context of the family holds a token for each."""
_Read = TypeVar("_Read")
_Part = TypeVar("_Part", MediaPart, EncodedPart)


class MessageRules:
    """The rules of programs: pictures in memory are parts, and keys that nothing here reads are passed over."""

    refused_parts: Mapping[str, str] = {}
    """Types of parts that are not taken, each with the reason."""

    def check_message(self, message: Mapping[str, Any], role: str, where: str, last: bool) -> None: ...

    def check_call(self, call: Any, where: str) -> None: ...

    def check_keys(self, value: Mapping[str, Any], known: Sequence[str], where: str, inside: str = "") -> None:
        """Take the keys of a part that are not `known`; or of the object within it, under the key `inside`."""

    def check_medium(self, part: Mapping[str, Any], inner: Mapping[str, Any], key: str, where: str) -> None:
        """Take the keys of a picture or video, in its part and in the object under `key`."""


@dataclass
class ParsedMessage:
    """One message, checked and sorted; its pictures and videos are open already, or are to be read."""

    role: str
    """One of ROLES, tool, or a name of the caller's; developers are the system."""
    parts: list[str | MediaPlace] = field(default_factory=list)
    """Texts and the places of media, in the order in which they came."""
    images: list[MediaPart | EncodedPart | Image.Image] = field(default_factory=list)
    videos: list[MediaPart | list[Image.Image]] = field(default_factory=list)
    calls: tuple[str, ...] = ()
    """Tool calls of the assistant, each a JSON text."""

    @property
    def text(self) -> str:
        return "\n".join(part for part in self.parts if isinstance(part, str))

    @property
    def is_plain(self) -> bool:
        return not (self.images or self.videos or self.calls)

    @property
    def order(self) -> tuple[str | MediaPlace, ...]:
        """Texts and media for `Message.parts`; empty where every `PartsOrder` gives the same prompt."""
        kinds = ["text" if isinstance(part, str) else part.kind for part in self.parts]
        usual = ["image"] * len(self.images) + ["video"] * len(self.videos) + ["text"] * ("text" in kinds)
        return () if kinds == usual else tuple(self.parts)

    def add(self, part: Any, where: str, rules: MessageRules) -> None:
        """Add a part of the content. Raises InvalidField, naming `where`."""
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        if not isinstance(part, Mapping):
            raise _wrong(where, " must be a text or an object", part)
        kind = _kind_of(part)
        if kind == "thinking":  # of an earlier answer: no part of the prompt
            return
        key = _key_of(kind, where, rules)
        if key in ("text", "refusal"):
            self.parts.append(_text(part, key, where, rules))
        elif key in ("video_url", "video_frames"):
            self.videos.append(
                _medium(part, key, where, rules) if key == "video_url" else _frames(part.get(key), where)
            )
            self.parts.append(MediaPlace("video"))
        else:
            self.images.append(_picture(part, key, where, rules))
            self.parts.append(MediaPlace("image"))


def parse_messages(messages: Sequence[Any], rules: MessageRules = MessageRules()) -> tuple[ParsedMessage, ...]:
    """Check messages of the OpenAI form and sort their parts. Raises InvalidField with the place of what is wrong."""
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise InvalidField("messages", f"messages must be a list of messages, got {type(messages).__name__}.")
    if not messages:
        raise InvalidField("messages", "messages is empty: it needs at least one message.")
    if (parts := sum(map(_parts_in, messages))) > MAX_PARTS:
        raise InvalidField(
            "messages", f"messages have {parts} parts in all, the limit is {MAX_PARTS}: send a shorter conversation."
        )
    last = len(messages) - 1
    return tuple(
        _message(message, f"messages[{number}]", rules, number == last) for number, message in enumerate(messages)
    )


def parse_pictures(parts: Sequence[Any], rules: MessageRules) -> list[MediaPart]:
    """Check the pictures of /v1/encode, parts of messages or URLs. Raises InvalidField with the place of a part."""
    found = []
    for number, part in enumerate(parts):
        where, value = f"input[{number}]", {"image_url": part} if isinstance(part, str) else part
        kind = _kind_of(value)
        if not isinstance(kind, str) or _KINDS.get(kind) != "image_url":
            raise InvalidField(
                where, f"{where}: type must be image_url, as pictures alone are encoded, got {kind!r:.80}."
            )
        found.append(_medium(value, "image_url", where, rules))
    return found


def read_messages(messages: Sequence[dict[str, Any]], reader: MediaReader) -> tuple[list[Message], list[Media]]:
    """Check a program's messages, and open their media as `open_messages` does."""
    return open_messages(parse_messages(messages), reader)


def open_messages(parsed: Sequence[ParsedMessage], reader: MediaReader) -> tuple[list[Message], list[Media]]:
    """Return messages for a template, and their media, message by message, pictures before videos.

    Counts are checked before anything is fetched. Several text parts of one message are joined by newlines, unless the
    template orders parts in another way.
    """
    reader.check_count("image", sum(len(message.images) for message in parsed))
    reader.check_count("video", sum(len(message.videos) for message in parsed))
    for part in (item for message in parsed for item in message.images if isinstance(item, EncodedPart)):
        reader.takes_embeddings(part.where)
    opened: list[Message] = []
    media: list[Media] = []
    for message in parsed:
        images = [open_picture(item, reader) for item in message.images]
        videos = [_placed(item, reader.video) if isinstance(item, MediaPart) else item for item in message.videos]
        lengths = tuple(map(len, videos))
        opened.append(Message(message.role, message.text, len(images), lengths, message.calls, message.order))
        media += [*images, *videos]
    return opened, media


def open_picture(item: MediaPart | EncodedPart | Image.Image, reader: MediaReader) -> Picture:
    """Open a picture of a message. Raises InvalidRequest with its place."""
    if isinstance(item, EncodedPart):
        return _placed(item, reader.encoded_picture)
    return _placed(item, reader.picture) if isinstance(item, MediaPart) else reader.given(item)


def _placed(part: _Part, read: Callable[[_Part], _Read]) -> _Read:
    try:
        return read(part)
    except InvalidMedia as error:
        raise error.at(part.where) from None


def _parts_in(message: Any) -> int:
    """Return how many parts a message has, whatever they are; a text is one."""
    content = message.get("content") if isinstance(message, Mapping) else None
    return len(content) if isinstance(content, Sequence) and content and not isinstance(content, str) else 1


def _message(message: Any, where: str, rules: MessageRules, last: bool) -> ParsedMessage:
    if not isinstance(message, Mapping):
        raise _wrong(where, " must be an object with role and content", message)
    role, content = _role(message.get("role"), where), message.get("content")
    rules.check_message(message, role, where, last)
    found = ParsedMessage("system" if role == "developer" else role)
    if content is None or isinstance(content, str):
        found.parts.append(content or "")
    elif isinstance(content, Sequence):
        for index, part in enumerate(content):
            found.add(part, f"{where}.content[{index}]", rules)
    else:
        raise _wrong(where, ": content must be a text or a list of parts", content, f"{where}.content")
    found.calls = _calls(message.get("tool_calls"), role, where, rules)
    return found


def _role(role: Any, where: str) -> str:
    """Return a role that some template could write; each template says which beside ROLES it takes."""
    if isinstance(role, str) and role in _ROLES:
        return role
    custom = isinstance(role, str) and bool(_CUSTOM_ROLE.fullmatch(role)) and role != "function"
    if custom and not is_near_miss(role, _ROLES):
        return str(role)
    meant = other_spelling(str(role), _ROLES)
    hint = f" Did you mean {meant}?" if meant else did_you_mean(str(role), _ROLES)
    hint = " Its successor is tool." if role == "function" else hint
    raise InvalidField(
        f"{where}.role",
        f"{where}: role must be one of {', '.join(_ROLES)}, or a name of letters and digits where the model's "
        f"template takes any, got {role!r:.80}.{hint}",
    )


def _calls(calls: Any, role: str, where: str, rules: MessageRules) -> tuple[str, ...]:
    if calls is None or calls == []:
        return ()
    if isinstance(calls, list) and role != "assistant":
        raise InvalidField(f"{where}.tool_calls", f"{where}: only the assistant has tool_calls, role is {role}.")
    for number, call in enumerate(calls if isinstance(calls, list) else ()):
        rules.check_call(call, f"{where}.tool_calls[{number}]")
    return read_calls(calls, where)


def _kind_of(part: Mapping[str, Any]) -> Any:
    """Return the type of a part; of one without, the first known key."""
    kind = part.get("type")
    return next((name for name in _KINDS if name in part), None) if kind is None else kind


def _key_of(kind: Any, where: str, rules: MessageRules) -> str:
    if isinstance(kind, str) and kind in rules.refused_parts:
        raise InvalidField(where, f"{where}: parts of type {kind} are not taken, as {rules.refused_parts[kind]}.")
    if not isinstance(kind, str) or kind not in _KINDS:
        known = [name for name in _NAMED if name not in rules.refused_parts]
        hint = did_you_mean(str(kind), known)
        raise InvalidField(where, f"{where}: type must be one of {', '.join(known)}, got {kind!r:.80}.{hint}")
    return _KINDS[kind]


def _text(part: Mapping[str, Any], key: str, where: str, rules: MessageRules) -> str:
    rules.check_keys(part, ("type", key), where)
    value = part.get(key)
    if not isinstance(value, str):
        raise _wrong(where, f": {key} must be a string", value)
    return value


def _picture(
    part: Mapping[str, Any], key: str, where: str, rules: MessageRules
) -> MediaPart | EncodedPart | Image.Image:
    if key == "image_url":
        return _medium(part, key, where, rules)
    if key == IMAGE_EMBEDS:
        return _encoded(part, where, rules)
    value = part.get(key)
    if not isinstance(value, Image.Image):
        raise _wrong(where, ": image_pil needs a PIL image", value)
    return value


def _frames(value: Any, where: str) -> list[Image.Image]:
    if not isinstance(value, list) or not all(isinstance(frame, Image.Image) for frame in value):
        raise InvalidField(where, f"{where}: video_frames needs a list of PIL images, got {value!r:.80}.")
    if not value:
        raise InvalidMedia(f"{where}: video_frames has no frames: send at least one.")
    return value


def _encoded(part: Mapping[str, Any], where: str, rules: MessageRules) -> EncodedPart:
    """Return a picture that comes encoded: a file in base64, or an object with one, as vLLM's clients send either."""
    value = part.get(IMAGE_EMBEDS)
    rules.check_keys(part, ("type", IMAGE_EMBEDS, "uuid"), where)
    if isinstance(value, Mapping):
        rules.check_keys(value, (IMAGE_EMBEDS,), f"{where}.{IMAGE_EMBEDS}", IMAGE_EMBEDS)
        value = value.get(IMAGE_EMBEDS)
    uuid = check_uuid(part.get("uuid"), where)
    if not (isinstance(value, str) or is_array(value) or (value is None and uuid is not None)):
        raise InvalidField(
            where,
            f"{where}: image_embeds needs a file of a tensor in base64, got {type(value).__name__}; or a uuid of a "
            "picture that was sent before.",
        )
    return EncodedPart(value, uuid, where)


def _medium(part: Mapping[str, Any], key: str, where: str, rules: MessageRules) -> MediaPart:
    value = part.get(key)
    inner = value if isinstance(value, Mapping) else {"url": value}
    rules.check_medium(part, inner, key, where)
    url, given = inner.get("url"), {name: inner.get(name, part.get(name)) for name in MEDIUM_KEYS}
    if not isinstance(url, str) and (url is not None or given["uuid"] is None):
        kind = type(url).__name__
        raise InvalidField(where, f"{where}: {key} needs a URL, got {kind}; or a uuid of media that were sent before.")
    detail = given["detail"]
    if detail not in (*get_args(Detail), None):
        known = ", ".join(get_args(Detail))
        raise InvalidField(where, f"{where}: detail must be one of {known}, got {detail!r:.80}.")
    uuid, tiling = check_uuid(given["uuid"], where), tuple(_tiling(given, key, where))
    if key == "video_url":
        return MediaPart(url, "video", uuid, detail, where=where)
    return MediaPart(url, "image", uuid, detail, tiling, where)


def _tiling(given: Mapping[str, Any], key: str, where: str) -> Iterator[tuple[str, int]]:
    """Yield how one picture is cut."""
    for name in _TILING:
        value = lax_number(given[name])
        if value is None:
            continue
        if type(value) is not int or value < 1:
            raise InvalidField(where, f"{where}: {name} must be a whole number from 1 on, got {value!r:.80}.")
        if key != "image_url" and value != 1:
            why = "as frames of videos are one tile each"
            raise InvalidField(where, f"{where}: {name} must be 1, {why}, got {value}.")
        yield name, value


def _wrong(where: str, needs: str, value: Any, param: str | None = None) -> InvalidField:
    return InvalidField(param or where, f"{where}{needs}, got {type(value).__name__}.")
