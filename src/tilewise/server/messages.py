"""Keys of messages that clients of OpenAI's API send and nothing reads: told as ignored, or refused with the reason."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tilewise.errors import InvalidField
from tilewise.inputs.messages import MEDIUM_KEYS, MessageRules
from tilewise.server.body import UnknownFields

_KEYS = {
    "assistant": ("role", "content", "tool_calls"),
    "tool": ("role", "content", "tool_call_id"),
}
"""Keys of a message by its role; of any other role they are role and content."""
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
_ALL_KEYS = ("role", "content", "tool_call_id", "tool_calls", *_SPARE, *_SUCCESSORS)
_NOTHING: tuple[Any, ...] = (None, [], {}, "")
"""Values that say nothing; an answer of ours that a client sends back has many of them."""
PREFIX_KEYS = ("prefix", "partial")
"""Keys of a last message of the assistant; true = the answer goes on with that message."""
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


class RequestRules(MessageRules):
    """The rules of a request's messages: all media have URLs, and no key is passed over in silence."""

    refused_parts: Mapping[str, str] = {
        "audio_url": "the models hear nothing",
        "input_audio": "the models hear nothing",
        "video_embeds": "videos come as pixels: send video_url",
        "file": "files are not read: send pages as image_url",
        "input_file": "files are not read: send pages as image_url",
        "image_pil": "it is for programs: send image_url",
        "video_frames": "it is for programs: send video_url",
    }

    def __init__(
        self, unknown: UnknownFields, detail_levels: Collection[str] = (), place: str = "messages.content"
    ) -> None:
        """`detail_levels` have an effect here; `place` begins the names under which keys of parts are noted."""
        self._unknown, self._detail_levels, self._place = unknown, detail_levels, place

    def check_message(self, message: Mapping[str, Any], role: str, where: str, last: bool) -> None:
        known = _KEYS.get(role, ("role", "content"))
        for key in _nonempty_keys(message):
            begins_answer = last and role == "assistant" and key in PREFIX_KEYS and isinstance(message[key], bool)
            if key not in known and not begins_answer:
                self._take_key(key, role, where)
        # A content of null is an empty one, as in vLLM.
        may_be_empty = role == "assistant" or ("content" in message and role in ("user", "system", "developer"))
        if message.get("content") is None and not message.get("tool_calls") and not may_be_empty:
            raise InvalidField(f"{where}.content", f"{where}: a message of role {role} needs content.")

    def _take_key(self, key: str, role: str, where: str) -> None:
        """Note as ignored, or refuse with InvalidField, a key of a message that its role has no place for."""
        if key in _SUCCESSORS:
            raise InvalidField(f"{where}.{key}", f"{where}: {key} is not taken, as {_SUCCESSORS[key]}.")
        if key in PREFIX_KEYS:
            self._unknown.ignored.add(f"messages.{key}", "true goes on with a last message, of the assistant")
        elif key in _SPARE:
            self._unknown.ignored.add(f"messages.{key}", _SPARE[key])
        elif key in _ALL_KEYS:
            raise InvalidField(f"{where}.{key}", f"{where}: a message of role {role} has no {key!r}.")
        else:
            self._unknown.take(f"messages.{key}", _ALL_KEYS, where, f"{where}.{key}")

    def check_call(self, call: Any, where: str) -> None:
        if not isinstance(call, dict) or (call.get("type") or "function") != "function":
            raise InvalidField(where, f"{where} must be an object of type function, got {call!r:.80}.")
        if not isinstance(call.get("id"), str | None):
            raise InvalidField(where, f"{where}: id must be a text, got {call['id']!r:.80}.")
        self._unknown.take_all("messages.tool_calls", _nonempty_keys(call), ("id", "type", "function"), where)

    def check_keys(self, value: Mapping[str, Any], known: Sequence[str], where: str, inside: str = "") -> None:
        self._unknown.take_all(
            f"{self._place}.{inside}" if inside else self._place, _nonempty_keys(value), known, where
        )

    def check_medium(self, part: Mapping[str, Any], inner: Mapping[str, Any], key: str, where: str) -> None:
        if inner.get("file_id", part.get("file_id")) not in _NOTHING:
            raise InvalidField(
                f"{where}.file_id", f"{where}: file_id is not taken: files are not kept here, send a URL or a data URL."
            )
        for name in (*inner, *part):
            if name in _CHANGING[key] and inner.get(name, part.get(name)) not in _NOTHING:
                raise InvalidField(where, f"{where}: {name} is not taken: {_CHANGING[key][name]}.")
        self.check_keys(part, ("type", key, *MEDIUM_KEYS), where)
        self.check_keys(inner, MEDIUM_KEYS, f"{where}.{key}", key)
        if inner.get("detail", part.get("detail")) not in (None, "auto", *self._detail_levels):
            why = "the server was started without --detail-tiles for it; max_dynamic_patch says how a picture is cut"
            self._unknown.ignored.add(f"{self._place}.{key}.detail", why)


def _nonempty_keys(value: Mapping[str, Any]) -> list[str]:
    """Return the keys whose values say something."""
    return [key for key, inner in value.items() if inner not in _NOTHING]
