"""Messages of the OpenAI API, with all that clients put into them, to those that `read_messages` takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tilewise.errors import InvalidField, did_you_mean

_KEYS = {
    "system": {"content"},
    "developer": {"content"},
    "user": {"content"},
    "assistant": {"content", "tool_calls"},
    "tool": {"content", "tool_call_id"},
}
# Of all roles. What an earlier answer reported beside its text is no part of the prompt, as in the training: reasoning
# of earlier turns is left out there.
_SPARE = {"name", "reasoning", "reasoning_content", "refusal", "annotations", "audio", "function_call"}
_SUCCESSORS = {"function_call": "its successor is tool_calls", "audio": "the models hear nothing"}
_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "image_url": "image_url",
    "input_image": "image_url",
    "video_url": "video_url",
}
_REFUSED_PARTS = {
    "audio_url": "the models hear nothing",
    "input_audio": "the models hear nothing",
    "image_embeds": "pictures come as pixels: send image_url",
    "video_embeds": "videos come as pixels: send video_url",
    "file": "files are not read: send pages as image_url",
    "input_file": "files are not read: send pages as image_url",
    "image_pil": "it is for programs: send image_url",
    "video_frames": "it is for programs: send video_url",
}
_DETAILS = ("auto", "low", "high", "original", None)


@dataclass(frozen=True)
class Conversation:
    """Messages for `read_messages`, and which of their pictures, in order, asked for little detail."""

    messages: tuple[dict[str, Any], ...]
    low_detail: frozenset[int]


def read_conversation(messages: Sequence[dict[str, Any]]) -> Conversation:
    """Raises InvalidField, naming message and part."""
    if not messages:
        raise InvalidField("messages", "messages is empty: it needs at least one message.")
    plain: list[dict[str, Any]] = []
    details: list[str | None] = []
    for number, message in enumerate(messages):
        plain.append(_message(message, f"messages[{number}]", details))
    return Conversation(tuple(plain), frozenset(i for i, detail in enumerate(details) if detail == "low"))


def _message(message: dict[str, Any], where: str, details: list[str | None]) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str) or role not in _KEYS:
        known = ", ".join(_KEYS)
        raise InvalidField(f"{where}.role", f"{where}: role must be one of {known}, got {role!r:.80}.")
    for key in message:
        if key not in _KEYS[role] | _SPARE | {"role"}:
            hint = did_you_mean(key, sorted(_KEYS[role]))
            raise InvalidField(f"{where}.{key}", f"{where}: a message of role {role} has no {key[:80]!r}.{hint}")
        if key in _SUCCESSORS and message[key] is not None:
            raise InvalidField(f"{where}.{key}", f"{where}: {key} is not taken, as {_SUCCESSORS[key]}.")
    content = message.get("content")
    if isinstance(content, list):
        content = list(_parts(content, where, details))
    elif content is not None and not isinstance(content, str):
        raise InvalidField(
            f"{where}.content",
            f"{where}: content must be a text or a list of parts, got {type(content).__name__}.",
        )
    if content is None and not message.get("tool_calls") and role != "assistant":
        raise InvalidField(f"{where}.content", f"{where}: a message of role {role} needs content.")
    calls = {"tool_calls": message["tool_calls"]} if message.get("tool_calls") else {}
    return {"role": "system" if role == "developer" else role, "content": content, **calls}


def _parts(parts: list[Any], where: str, details: list[str | None]) -> Iterator[dict[str, Any]]:
    for number, part in enumerate(parts):
        here = f"{where}.content[{number}]"
        if isinstance(part, str):
            yield {"type": "text", "text": part}
            continue
        if not isinstance(part, dict):
            raise InvalidField(here, f"{here} must be a text or an object, got {type(part).__name__}.")
        kind = part.get("type") or next((name for name in _PARTS if name in part), None)
        if kind == "thinking":  # of an earlier answer: no part of the prompt
            continue
        yield _part(part, kind, here, details)


def _part(part: dict[str, Any], kind: Any, here: str, details: list[str | None]) -> dict[str, Any]:
    if kind in _REFUSED_PARTS:
        raise InvalidField(here, f"{here}: parts of type {kind} are not taken, as {_REFUSED_PARTS[kind]}.")
    if kind not in _PARTS:
        known = ("text", "image_url", "video_url")
        raise InvalidField(
            here, f"{here}: type must be one of {', '.join(known)}, got {kind!r:.80}.{did_you_mean(str(kind), known)}"
        )
    key = _PARTS[kind]
    value = part.get(key)
    if key in ("text", "refusal"):
        if not isinstance(value, str):
            raise InvalidField(here, f"{here}: {key} must be a string, got {type(value).__name__}.")
        return {"type": "text", "text": value}
    url = value.get("url") if isinstance(value, dict) else value
    if not isinstance(url, str):
        # A uuid alone would name media of an earlier request; tiles are known by their pixels instead.
        raise InvalidField(here, f"{here}: {key} needs a URL, got {type(url).__name__}: send the media again.")
    if key == "image_url":
        details.append(_detail(value.get("detail") if isinstance(value, dict) else part.get("detail"), here))
    return {"type": key, key: {"url": url}}


def _detail(detail: Any, here: str) -> str | None:
    if detail not in _DETAILS:
        raise InvalidField(here, f"{here}: detail must be auto, low or high, got {detail!r:.80}.")
    return detail if isinstance(detail, str) else None
