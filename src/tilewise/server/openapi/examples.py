"""Request bodies that show what the routes are for. Each is answered by the demo model, within a second or two."""

from __future__ import annotations

from typing import Any

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
TOKENIZE: dict[str, dict[str, Any]] = {
    "a text": {"prompt": "red circle", "return_token_strs": True},
    "a conversation": {"messages": [_PICTURE]},
}
DETOKENIZE: dict[str, dict[str, Any]] = {"tokens": {"tokens": [65, 66, 67]}}

ENCODE: dict[str, dict[str, Any]] = {"a picture": {"input": [{"type": "image_url", "image_url": {"url": RED_CIRCLE}}]}}
