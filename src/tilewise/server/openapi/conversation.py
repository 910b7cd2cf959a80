"""Shapes of what is read by hand: messages and their parts, and the items of /v1/responses."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_NULL: Schema = {"type": "null"}


def _object(required: list[str], **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": required}


def _any(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def _list(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def _kind(*names: str) -> Schema:
    return {"enum": list(names)}


_DETAIL: Schema = {
    "enum": ["auto", "low", "high", "original", None],
    "description": "Of no effect, but with a server option that says so.",
}
_URL: Schema = {"type": "string", "description": "http, https, data with base64, or file where the server allows it."}
_TEXT_PART = _object(["text"], type=_kind("text", "input_text", "output_text"), text=_TEXT)
_REFUSAL_PART = _object(["refusal"], type=_kind("refusal"), refusal=_TEXT)
_IMAGE_PART = _object(
    ["image_url"],
    type=_kind("image_url", "input_image"),
    image_url=_any(_URL, _object(["url"], url=_URL, detail=_DETAIL)),
    detail=_DETAIL,
)
_VIDEO_PART = _object(["video_url"], type=_kind("video_url"), video_url=_any(_URL, _object(["url"], url=_URL)))
_THINKING_PART = _object(["type"], type=_kind("thinking"))
_PART = _any(_TEXT, _TEXT_PART, _IMAGE_PART, _VIDEO_PART, _REFUSAL_PART, _THINKING_PART)
_CALL = _object(["function"], id=_TEXT, type=_kind("function"), function=_object(["name"], name=_TEXT))

_IGNORED: dict[str, Schema] = {
    name: {"description": "Of an earlier answer, or a label: no part of the prompt."}
    for name in ("name", "reasoning", "reasoning_content", "refusal", "annotations", "tool_call_id")
}
MESSAGE: Schema = {
    **_object(
        ["role"],
        role=_kind("system", "developer", "user", "assistant", "tool"),
        content=_any(_TEXT, _list(_PART), _NULL),
        tool_calls=_any(_list(_CALL), _NULL),
        audio=_NULL,
        function_call=_NULL,
        **_IGNORED,
    ),
    "additionalProperties": False,
}
MESSAGES = {**_list(MESSAGE), "minItems": 1}
_ITEM = _any(
    _object(["role"], type=_kind("message"), role=_TEXT),
    _object(["type"], type=_kind("function_call"), call_id=_TEXT, name=_TEXT),
    _object(["type"], type=_kind("function_call_output"), call_id=_TEXT),
    _object(["type"], type=_kind("reasoning")),
)
INPUT = _any(_TEXT, {**_list(_ITEM), "minItems": 1})
TEMPLATE_OPTIONS: Schema = {
    "anyOf": [{**_object([], enable_thinking=_any({"type": "boolean"}, _NULL)), "additionalProperties": False}, _NULL],
    "default": None,
}
