"""Messages of the OpenAI API, with all that clients put into them, are read into those that `read_messages` takes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from tilewise.errors import InvalidField, InvalidRequest, did_you_mean
from tilewise.inputs.messages import TILING, check_role
from tilewise.server.body import UnknownFields
from tilewise.types import Detail

_KEYS = {
    "system": {"content"},
    "developer": {"content"},
    "user": {"content"},
    "assistant": {"content", "tool_calls"},
    "tool": {"content", "tool_call_id"},
}
_SPARE = {
    "name": "the templates have no place for names",
    "tool_call_id": "results are told apart by their order",
    "reasoning": "reasoning of earlier turns is no part of a prompt, as in the training",
    "reasoning_content": "reasoning of earlier turns is no part of a prompt, as in the training",
    "refusal": "what an earlier answer reported beside its text is no part of a prompt",
    "annotations": "what an earlier answer reported beside its text is no part of a prompt",
}
"""Keys of messages that have no effect in any role, each with the reason."""
_SUCCESSORS = {"function_call": "its successor is tool_calls", "audio": "the models hear nothing"}
_ALL_KEYS = ("role", *sorted(set().union(*_KEYS.values())), *_SPARE, *_SUCCESSORS)
_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "image_url": "image_url",
    "input_image": "image_url",
    "video_url": "video_url",
    "image_embeds": "image_embeds",
}
_REFUSED_PARTS = {
    "audio_url": "the models hear nothing",
    "input_audio": "the models hear nothing",
    "video_embeds": "videos come as pixels: send video_url",
    "file": "files are not read: send pages as image_url",
    "input_file": "files are not read: send pages as image_url",
    "image_pil": "it is for programs: send image_url",
    "video_frames": "it is for programs: send video_url",
}
_NOTHING: tuple[Any, ...] = (None, [], {}, "")
"""Values that say nothing; an answer of ours that a client sends back has many of them."""
_DETAILS = (*get_args(Detail), None)
PREFIX_KEYS = ("prefix", "partial")
"""Keys of a last message of the assistant; true = the answer goes on with that message."""
_OF_MEDIA = ("url", "uuid", "detail", *TILING)
_PIXELS = "pictures are cut into tiles of one size, set max_dynamic_patch"
_FRAMES = "it is set for all videos of a request, as media_io_kwargs.video.num_frames or fps"
_CHANGING = {
    "image_url": dict.fromkeys(
        ("min_pixels", "max_pixels", "resized_height", "resized_width", "size", "max_slice_nums", "crop"), _PIXELS
    ),
    "video_url": {
        **dict.fromkeys(("fps", "num_frames", "nframes", "max_frames", "min_frames", "sample_fps"), _FRAMES),
        **dict.fromkeys(("video_start", "video_end", "start", "end"), "videos are read as a whole"),
        **dict.fromkeys(
            ("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width"), "frames are one tile each"
        ),
    },
}
"""Options of a picture or video that change what the model sees, and cannot be had; each with the reason."""


def read_conversation(
    messages: Sequence[dict[str, Any]], unknown: UnknownFields, detail_levels: Collection[str] = ()
) -> tuple[dict[str, Any], ...]:
    """Return messages for `read_messages`. Keys without effect, and a `detail` of no level, are noted as ignored.

    Raises InvalidField, naming message and part.
    """
    if not messages:
        raise InvalidField("messages", "messages is empty: it needs at least one message.")
    conversation = _Conversation(unknown, detail_levels, len(messages) - 1)
    return tuple(_message(message, number, conversation) for number, message in enumerate(messages))


def read_input(
    parts: Sequence[str | dict[str, Any]], unknown: UnknownFields, detail_levels: Collection[str] = ()
) -> tuple[dict[str, Any], ...]:
    """Return the pictures of /v1/encode, parts of messages or URLs. Raises InvalidField with the place of a part."""
    found, reading = [], _Conversation(unknown, detail_levels, 0, "input")
    for number, part in enumerate(parts):
        here, value = f"input[{number}]", {"image_url": part} if isinstance(part, str) else part
        kind = value.get("type") or next((name for name in _PARTS if name in value), None)
        if not isinstance(kind, str) or _PARTS.get(kind) != "image_url":
            raise InvalidField(
                here, f"{here}: type must be image_url, as pictures alone are encoded, got {kind!r:.80}."
            )
        found.append(_medium(value, "image_url", here, reading))
    return tuple(found)


@dataclass(frozen=True)
class _Conversation:
    """The rules by which all messages of a request are read."""

    unknown: UnknownFields
    detail_levels: Collection[str]
    last: int
    """Number of the last message."""
    place: str = "messages.content"
    """Beginning of the names under which unknown keys of parts are reported."""


def _message(message: dict[str, Any], number: int, conversation: _Conversation) -> dict[str, Any]:
    where, unknown = f"messages[{number}]", conversation.unknown
    role = _role(message, where)
    begins = role == "assistant" and number == conversation.last
    for key, value in message.items():
        if begins and key in PREFIX_KEYS and isinstance(value, bool):
            continue
        if key not in _KEYS.get(role, {"content"}) | {"role"} and value not in _NOTHING:
            _take_key(key, role, where, unknown)
    content = message.get("content")
    if isinstance(content, list):
        content = list(_parts(content, where, conversation))
    elif content is not None and not isinstance(content, str):
        raise InvalidField(
            f"{where}.content",
            f"{where}: content must be a text or a list of parts, got {type(content).__name__}.",
        )
    if content is None and "content" in message and role in ("user", "system", "developer"):
        content = ""  # as vLLM has it
    if content is None and not message.get("tool_calls") and role != "assistant":
        raise InvalidField(f"{where}.content", f"{where}: a message of role {role} needs content.")
    return {"role": "system" if role == "developer" else role, "content": content, **_calls(message, where, unknown)}


def _role(message: dict[str, Any], where: str) -> str:
    role = message.get("role")
    try:
        check_role(role, where)
    except InvalidRequest as error:
        raise InvalidField(f"{where}.role", str(error)) from None
    return str(role)


def _take_key(key: str, role: str, where: str, unknown: UnknownFields) -> None:
    """Note as ignored, or refuse with InvalidField, a key of a message that its role has no place for."""
    if key in _SUCCESSORS:
        raise InvalidField(f"{where}.{key}", f"{where}: {key} is not taken, as {_SUCCESSORS[key]}.")
    if key in PREFIX_KEYS:
        unknown.ignored.add(f"messages.{key}", "true goes on with a last message, of the assistant")
    elif key in _SPARE:
        unknown.ignored.add(f"messages.{key}", _SPARE[key])
    elif key in _ALL_KEYS:
        raise InvalidField(f"{where}.{key}", f"{where}: a message of role {role} has no {key!r}.")
    else:
        unknown.take(f"messages.{key}", _ALL_KEYS, where, f"{where}.{key}")


def _calls(message: dict[str, Any], where: str, unknown: UnknownFields) -> dict[str, Any]:
    """Return the `tool_calls` of a message, checked but for the function in each, which `read_calls` checks."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list | None):
        raise InvalidField(f"{where}.tool_calls", f"{where}: tool_calls must be a list, got {type(calls).__name__}.")
    for number, call in enumerate(calls or ()):
        here = f"{where}.tool_calls[{number}]"
        if not isinstance(call, dict) or (call.get("type") or "function") != "function":
            raise InvalidField(here, f"{here} must be an object of type function, got {call!r:.80}.")
        if not isinstance(call.get("id"), str | None):
            raise InvalidField(here, f"{here}: id must be a text, got {call['id']!r:.80}.")
        unknown.take_all("messages.tool_calls", _said(call), ("id", "type", "function"), here)
    return {"tool_calls": calls} if calls else {}


def _parts(parts: list[Any], where: str, conversation: _Conversation) -> Iterator[dict[str, Any]]:
    for number, part in enumerate(parts):
        here = f"{where}.content[{number}]"
        if isinstance(part, str):
            yield {"type": "text", "text": part}
            continue
        if not isinstance(part, dict):
            raise InvalidField(here, f"{here} must be a text or an object, got {type(part).__name__}.")
        kind = part.get("type")
        if kind is None:
            kind = next((name for name in _PARTS if name in part), None)
        if kind == "thinking":  # of an earlier answer: no part of the prompt
            continue
        yield _part(part, kind, here, conversation)


def _part(part: dict[str, Any], kind: Any, here: str, conversation: _Conversation) -> dict[str, Any]:
    if isinstance(kind, str) and kind in _REFUSED_PARTS:
        raise InvalidField(here, f"{here}: parts of type {kind} are not taken, as {_REFUSED_PARTS[kind]}.")
    if not isinstance(kind, str) or kind not in _PARTS:
        known = ("text", "image_url", "video_url", "image_embeds")
        raise InvalidField(
            here, f"{here}: type must be one of {', '.join(known)}, got {kind!r:.80}.{did_you_mean(str(kind), known)}"
        )
    key = _PARTS[kind]
    if key.endswith("_url"):
        return _medium(part, key, here, conversation)
    if key == "image_embeds":
        return _encoded(part, here, conversation)
    conversation.unknown.take_all("messages.content", _said(part), ("type", key), here)
    value = part.get(key)
    if not isinstance(value, str):
        raise InvalidField(here, f"{here}: {key} must be a string, got {type(value).__name__}.")
    return {"type": "text", "text": value}


def _medium(part: dict[str, Any], key: str, here: str, conversation: _Conversation) -> dict[str, Any]:
    value, unknown = part.get(key), conversation.unknown
    found = dict(value) if isinstance(value, dict) else {"url": value}
    if found.get("file_id", part.get("file_id")) not in _NOTHING:
        raise InvalidField(
            f"{here}.file_id", f"{here}: file_id is not taken: files are not kept here, send a URL or a data URL."
        )
    for name in (*found, *part):
        if name in _CHANGING[key] and found.get(name, part.get(name)) not in _NOTHING:
            raise InvalidField(here, f"{here}: {name} is not taken: {_CHANGING[key][name]}.")
    unknown.take_all(conversation.place, _said(part), ("type", key, *_OF_MEDIA), here)
    unknown.take_all(f"{conversation.place}.{key}", _said(found), _OF_MEDIA, f"{here}.{key}")
    options = {name: found.get(name, part.get(name)) for name in _OF_MEDIA if name != "url"}
    if not isinstance(found.get("url"), str) and (options["uuid"] is None or found.get("url") is not None):
        kind = type(found.get("url")).__name__
        raise InvalidField(here, f"{here}: {key} needs a URL, got {kind}; or a uuid of media that were sent before.")
    _check_detail(options["detail"], key, here, conversation)
    uuid = options.pop("uuid")
    shown = {"url": found.get("url"), **{name: option for name, option in options.items() if option is not None}}
    return {"type": key, key: shown, **({} if uuid is None else {"uuid": uuid})}


def _encoded(part: dict[str, Any], here: str, conversation: _Conversation) -> dict[str, Any]:
    """Return a part with an encoded picture: a file in base64, or an object with one, as vLLM's clients send either."""
    value, uuid = part.get("image_embeds"), part.get("uuid")
    conversation.unknown.take_all("messages.content", _said(part), ("type", "image_embeds", "uuid"), here)
    if isinstance(value, dict):
        inner = f"{here}.image_embeds"
        conversation.unknown.take_all("messages.content.image_embeds", _said(value), ("image_embeds",), inner)
        value = value.get("image_embeds")
    if not isinstance(value, str) and (uuid is None or value is not None):
        raise InvalidField(
            here,
            f"{here}: image_embeds needs a file of a tensor in base64, got {type(value).__name__}; or a uuid of a "
            "picture that was sent before.",
        )
    return {"type": "image_embeds", "image_embeds": value, **({} if uuid is None else {"uuid": uuid})}


def _check_detail(detail: Any, key: str, here: str, conversation: _Conversation) -> None:
    if detail not in _DETAILS:
        known = ", ".join(get_args(Detail))
        raise InvalidField(here, f"{here}: detail must be one of {known}, got {detail!r:.80}.")
    if detail not in (None, "auto", *conversation.detail_levels):
        why = "the server was started without --detail-tiles for it; max_dynamic_patch says how a picture is cut"
        conversation.unknown.ignored.add(f"{conversation.place}.{key}.detail", why)


def _said(value: dict[str, Any]) -> list[str]:
    """Return the keys whose values say something."""
    return [key for key, inner in value.items() if inner not in _NOTHING]
