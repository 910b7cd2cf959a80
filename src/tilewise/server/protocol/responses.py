"""/v1/responses."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict

from tilewise.server.protocol.chat import Effort, FlatTool, Tool, ToolChoice
from tilewise.server.protocol.common import Body, Given, Seed, StructuredOutputs


class TextFormat(Given):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = None
    strict: bool | None = None

    model_config = ConfigDict(alias_generator=lambda name: name.rstrip("_"))


class TextOptions(Given):
    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None
    """Anything but its default would have to be said in a message."""


class ReasoningOptions(Given):
    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    """Without effect: reasoning is given as it is, not summed up."""


class ResponsesBody(Body):
    input: str | list[dict[str, Any]]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    stream: bool = False
    text: TextOptions | None = None
    tools: list[FlatTool | Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    reasoning: ReasoningOptions | None = None
    request_id: str | None = None
    priority: int = 0
    cache_salt: str | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    min_tokens: int | None = None
    seed: Seed | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    top_k: int | None = None
    min_p: float | None = None
    skip_special_tokens: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    media_io_kwargs: dict[str, Any] | None = None
    include_reasoning: bool | None = None
    include: list[str] | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    background: bool = False
    enable_response_messages: bool = False
