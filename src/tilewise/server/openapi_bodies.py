"""The OpenAPI document of bodies, where their types do not make it: schemas of what is read by hand, and examples."""

from __future__ import annotations

from typing import Any

from tilewise.inputs.media.cache import MAX_UUID
from tilewise.inputs.media.tiling import MAX_TILES

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_NULL: Schema = {"type": "null"}


def _object(required: list[str], **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": required}


def _any(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def _list(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def _kind(*names: str | None) -> Schema:
    return {"enum": list(names)}


_DETAIL: Schema = {
    "enum": ["auto", "low", "medium", "high", "original", None],
    "description": "Of no effect, but with a server option that says so.",
}
_URL: Schema = {"type": "string", "description": "http, https, data with base64, or file where the server allows it."}
_UUID: Schema = {
    "anyOf": [{"type": "string", "minLength": 1, "maxLength": MAX_UUID}, _NULL],
    "description": "A name of the sender's, under which the file is kept for a while: later it can come without URL.",
}


def _media(key: str, *kinds: str) -> Schema:
    """Return the schema of a part with a URL, or with the uuid of media sent before, in the part or in its object."""
    tiles = _any({"type": "integer", "minimum": 1}, _NULL)
    options = {"url": _any(_URL, _NULL), "uuid": _UUID, "detail": _DETAIL}
    if key == "image_url":
        options |= {"max_dynamic_patch": tiles, "min_dynamic_patch": tiles}
    inner = _any(_URL, _object([], **options), _NULL)
    known = _object([], type=_kind(*kinds, None), uuid=_UUID, detail=_DETAIL, **{key: inner})
    return {**known, "anyOf": [{"properties": {"type": _kind(*kinds)}, "required": ["type"]}, {"required": [key]}]}


_TEXT_PART = _object(["text"], type=_kind("text", "input_text", "output_text", None), text=_TEXT)
_REFUSAL_PART = _object(["refusal"], type=_kind("refusal", None), refusal=_TEXT)
_IMAGE_PART = _media("image_url", "image_url", "input_image")
_VIDEO_PART = _media("video_url", "video_url")
_FILE: Schema = {
    "type": "string",
    "contentEncoding": "base64",
    "description": "A file of one tensor, safetensors, .npy or torch.save's; see docs/encode-server.md.",
}
_ENCODED_PART = {
    **_object([], type=_kind("image_embeds", None), uuid=_UUID,
              image_embeds=_any(_FILE, _object([], image_embeds=_any(_FILE, _NULL)), _NULL)),
    "anyOf": [{"properties": {"type": _kind("image_embeds")}, "required": ["type"]}, {"required": ["image_embeds"]}],
    "description": "A picture that comes encoded, where the server takes these.",
}  # fmt: skip
_THINKING_PART = _object(["type"], type=_kind("thinking"))
_PART = _any(_TEXT, _TEXT_PART, _IMAGE_PART, _VIDEO_PART, _ENCODED_PART, _REFUSAL_PART, _THINKING_PART)
_CONTENT = _any(_TEXT, _list(_PART), _NULL)
_NAME: Schema = {"type": "string", "minLength": 1}
_ARGUMENTS = {"description": "A JSON object, or the text of one.", **_any(_TEXT, {"type": "object"}, _NULL)}
_ID = _any(_TEXT, _NULL)
_CALL = _object(["function"], id=_ID, type=_kind("function"),
                function=_object(["name"], name=_NAME, arguments=_ARGUMENTS))  # fmt: skip

_IGNORED: dict[str, Schema] = {
    name: {"description": "Of an earlier answer, or a label: no part of the prompt."}
    for name in ("name", "reasoning", "reasoning_content", "refusal", "annotations", "tool_call_id")
}
_MESSAGE: Schema = {
    **_object(
        ["role"],
        role={"type": "string", "description": "system, developer, user, assistant or tool; or another, in ChatML."},
        content=_CONTENT,
        tool_calls=_any(_list(_CALL), _NULL),
        audio=_NULL,
        function_call=_NULL,
        prefix={"type": ["boolean", "null"], "description": "Of a last message of the assistant: go on with it."},
        **_IGNORED,
    ),
    "description": "Keys that are not known are taken, and named in the header x-tilewise-ignored.",
}
_MESSAGES = {**_list(_MESSAGE), "minItems": 1}
_DATA = _object(["type", "media_type", "data"], type=_kind("base64"), media_type=_TEXT,
                data={"type": "string", "contentEncoding": "base64"})  # fmt: skip
_TEXT_BLOCK = _object(["type", "text"], type=_kind("text"), text=_TEXT, cache_control={}, citations={})
_IMAGE_BLOCK = _object(["type", "source"], type=_kind("image"),
                       source=_any(_DATA, _object(["type", "url"], type=_kind("url"), url=_URL)))  # fmt: skip
_DOCUMENT_BLOCK = _object(["type", "source"], type=_kind("document"),
                          source=_object(["type", "data"], type=_kind("text"), data=_TEXT))  # fmt: skip
_SHOWN_BLOCK = _any(_TEXT_BLOCK, _IMAGE_BLOCK, _DOCUMENT_BLOCK)
_RESULT_BLOCK = _object(["type", "tool_use_id"], type=_kind("tool_result"), tool_use_id=_TEXT, is_error={},
                        content=_any(_TEXT, _list(_SHOWN_BLOCK), _NULL))  # fmt: skip
_CALL_BLOCK = _object(["type", "id", "name", "input"], type=_kind("tool_use"), id=_TEXT, name=_NAME,
                      input={"type": "object"})  # fmt: skip
_THOUGHT_BLOCK = _object(["type"], type=_kind("thinking", "redacted_thinking"))


def _turn(role: str, *blocks: Schema) -> Schema:
    return _object(["role", "content"], role=_kind(role), content=_any(_TEXT, _list(_any(*blocks))))


_TURNS = {
    **_list(
        _any(
            _turn("user", _TEXT_BLOCK, _IMAGE_BLOCK, _DOCUMENT_BLOCK, _RESULT_BLOCK),
            _turn("assistant", _TEXT_BLOCK, _THOUGHT_BLOCK, _CALL_BLOCK),
        )
    ),
    "minItems": 1,
}
_ITEM = _any(
    {**_MESSAGE, "properties": {**_MESSAGE["properties"], "type": _kind("message", None), "id": {}, "status": {}}},
    _object(["type", "name"], type=_kind("function_call"), call_id=_ID, name=_NAME, arguments=_ARGUMENTS),
    _object(["type", "output"], type=_kind("function_call_output"), call_id=_ID, output=_any(_TEXT, _list(_PART))),
    _object(["type"], type=_kind("reasoning")),
)
_INPUT = _any(_TEXT, {**_list(_ITEM), "minItems": 1})


def _options(**properties: Schema) -> Schema:
    """Return the schema of an object of these keys alone, or null."""
    return {"anyOf": [{**_object([], **properties), "additionalProperties": False}, _NULL], "default": None}


_BYTE: Schema = {"type": "integer", "minimum": 0, "maximum": 255}
_COLOUR: Schema = {"type": "array", "items": _BYTE, "minItems": 3, "maxItems": 3}
_COUNT: Schema = {"type": "integer", "minimum": 1}
_SWITCH: Schema = {"type": "boolean"}
_KWARGS: dict[str, Schema] = {
    "mm_processor_kwargs": _options(
        min_dynamic_patch=_COUNT,
        max_dynamic_patch={**_COUNT, "maximum": MAX_TILES},
        dynamic_image_size=_SWITCH,
        use_thumbnail=_SWITCH,
    )
}
CHAT_SHAPES: dict[str, Schema] = {
    "messages": _MESSAGES,
    "chat_template_kwargs": _any(_object([], enable_thinking=_any(_SWITCH, _NULL)), _NULL),
    "media_io_kwargs": _options(
        image=_options(rgba_background_color=_any(_COLOUR, _NULL), image_mode=_any({"const": "RGB"}, _NULL)),
        video=_options(
            num_frames=_any(_COUNT, {"const": -1}, _NULL),
            fps=_any({"type": "number", "exclusiveMinimum": 0}, _NULL),
            frame_recovery=_any(_SWITCH, _NULL),
            video_backend={"enum": ["opencv", "pyav", "torchcodec", None]},
        ),
    ),
    **_KWARGS,
}
"""Schemas of the fields of a chat body that are read by hand."""
BATCH_SHAPES: dict[str, Schema] = {**CHAT_SHAPES, "messages": {"type": "array", "minItems": 1, "items": _MESSAGES}}
"""Schemas of the fields of a batch of chats that are read by hand."""
ENCODE_SHAPES: dict[str, Schema] = {
    "input": _any(_URL, _IMAGE_PART, {**_list(_any(_URL, _IMAGE_PART)), "minItems": 1}),
    **_KWARGS,
}
"""Schemas of the fields of a body of /v1/encode that are read by hand."""
RESPONSE_SHAPES: dict[str, Schema] = {"input": _INPUT, **_KWARGS}
"""Schemas of the fields of a Responses body that are read by hand."""
ANTHROPIC_SHAPES: dict[str, Schema] = {
    "messages": _TURNS,
    "system": _any(_TEXT, _list(_TEXT_BLOCK), _NULL),
    "chat_template_kwargs": CHAT_SHAPES["chat_template_kwargs"],
    **_KWARGS,
}
"""Schemas of the fields of a Messages body that are read by hand."""

RED_CIRCLE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAHAAAABwAQMAAAD8LmYIAAAABlBMVEX/////AADrWueTAAAAxUlEQVR42u2TMQ6CQBBF3w4k"
    "UlhQ2slR8CYedY/gETwCJSHEsRh23JjFgsJowi8m//MznyHMwI4/wXnOVVCNmTyoDgAIACc4ZvIKFZBqBEJMbgDo86QlSwAaLwLQAtSvZIcAdM7EQ4O/"
    "1+YNsdgbjPbl5OVRV3Zro+3KVB9lY7TZ0vs1ORodt/QuWzOU3YfRe9lVfF/e3Mr/FpfkRlKLpEzLLw05kGaT9GlWBGACuLlUj698TS7ZZajO67cwLUnl"
    "O9rxU3gCbJUtc44dqvcAAAAASUVORK5CYII="
)
_QUESTION = {"role": "user", "content": "What color is the circle?"}
_PICTURE = {
    "role": "user",
    "content": [
        {"type": "image_url", "image_url": {"url": RED_CIRCLE}},
        {"type": "text", "text": "What color is the circle?"},
    ],
}
_SHAPE: dict[str, Any] = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "green", "blue"]}, "shape": {"enum": ["circle", "square"]}},
    "required": ["color", "shape"],
    "additionalProperties": False,
}
_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"enum": ["red", "blue"]}},
    "required": ["name"],
    "additionalProperties": False,
}
_TOOL = {"name": "paint", "description": "Paint in a color.", "parameters": _PARAMETERS}

CHAT: dict[str, dict[str, Any]] = {
    "a picture": {"messages": [_PICTURE], "max_tokens": 16, "temperature": 0},
    "a stream": {
        "messages": [_PICTURE],
        "max_tokens": 16,
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    "a form": {
        "messages": [_PICTURE],
        "max_tokens": 64,
        "response_format": {"type": "json_schema", "json_schema": {"name": "shape", "schema": _SHAPE}},
    },
    "a function": {
        "messages": [_QUESTION],
        "max_tokens": 64,
        "tools": [{"type": "function", "function": _TOOL}],
        "tool_choice": {"type": "function", "function": {"name": "paint"}},
    },
}
BATCHED_CHAT: dict[str, dict[str, Any]] = {
    "two conversations": {"messages": [[_PICTURE], [_QUESTION]], "max_tokens": 8, "temperature": 0}
}
COMPLETION: dict[str, dict[str, Any]] = {
    "a text": {"prompt": "The circle is", "max_tokens": 8, "temperature": 0},
    "scores of a prompt": {"prompt": "The circle is red", "max_tokens": 0, "echo": True, "logprobs": 1},
    "several prompts": {"prompt": ["The circle is", "The square is"], "max_tokens": 4, "n": 2, "stream": True},
}
RESPONSES: dict[str, dict[str, Any]] = {
    "a question": {"input": "What color is the circle?", "max_output_tokens": 16},
    "a picture": {
        "input": [
            {
                "role": "user",
                "content": [
                    {"type": "input_image", "image_url": RED_CIRCLE},
                    {"type": "input_text", "text": "What color is the circle?"},
                ],
            }
        ],
        "max_output_tokens": 16,
        "stream": True,
    },
}
_SYSTEM = "You answer with one word."
ANTHROPIC: dict[str, dict[str, Any]] = {
    "a picture": {
        "system": _SYSTEM,
        "messages": [
            {
                "role": "user",
                "content": [
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": RED_CIRCLE.partition(",")[2]},
                    },
                    {"type": "text", "text": "What color is the circle?"},
                ],
            }
        ],
        "max_tokens": 16,
        "stream": True,
    },
    "a function": {
        "messages": [_QUESTION],
        "max_tokens": 64,
        "tools": [{"name": "paint", "description": "Paint in a color.", "input_schema": _PARAMETERS}],
        "tool_choice": {"type": "tool", "name": "paint"},
    },
}
COUNT_TOKENS: dict[str, dict[str, Any]] = {"a question": {"system": _SYSTEM, "messages": [_QUESTION]}}
TOKENIZE: dict[str, dict[str, Any]] = {
    "a text": {"prompt": "red circle", "return_token_strs": True},
    "a conversation": {"messages": [_PICTURE]},
}
DETOKENIZE: dict[str, dict[str, Any]] = {"tokens": {"tokens": [65, 66, 67]}}

ENCODE: dict[str, dict[str, Any]] = {"a picture": {"input": [{"type": "image_url", "image_url": {"url": RED_CIRCLE}}]}}
