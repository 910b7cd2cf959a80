"""/tokenize and /detokenize."""

from __future__ import annotations

from typing import Any

from tilewise.server.protocol.chat import Tool
from tilewise.server.protocol.common import Body


class TokenizeBody(Body):
    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool = False
    tools: list[Tool] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    media_io_kwargs: dict[str, Any] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    max_dynamic_patch: int | None = None
    min_dynamic_patch: int | None = None
    interleave_mm_strings: bool | None = None
    enable_thinking: bool | None = None


class DetokenizeBody(Body):
    model: str | None = None
    tokens: list[int]
