"""Types of the request bodies, route by route."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict

from tilewise.server.protocol.common import Body, Given, Sampled, Seed, Strict, StructuredOutputs

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class FunctionDefinition(Given):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Given):
    type: Literal["function"] = "function"
    function: FunctionDefinition


class FunctionName(Given):
    name: str


class NamedTool(Given):
    type: Literal["function"]
    function: FunctionName


class FlatTool(Given):
    """A function as the Responses API writes it; some clients send it to chat, too."""

    type: Literal["function"] = "function"
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FlatToolName(Given):
    type: Literal["function"]
    name: str


class AllowedTools(Given):
    mode: Literal["auto", "required"] = "auto"
    tools: list[NamedTool | FlatToolName]


class AllowedToolsChoice(Given):
    """Only some of the tools: `allowed_tools` as the chat API has it, `mode` and `tools` as the Responses API does."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools | None = None
    mode: Literal["auto", "required"] = "auto"
    tools: list[NamedTool | FlatToolName] | None = None


ToolChoice = Literal["none", "auto", "required"] | NamedTool | FlatToolName | AllowedToolsChoice


class ChatBody(Sampled):
    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    tools: list[Tool | FlatTool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    reasoning_effort: Effort | None = None
    include_reasoning: bool = True
    enable_thinking: bool | None = None
    add_special_tokens: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    media_io_kwargs: dict[str, Any] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    max_dynamic_patch: int | None = None
    min_dynamic_patch: int | None = None
    interleave_mm_strings: bool | None = None
    echo: bool = False
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False


class BatchedChatBody(ChatBody):
    messages: list[list[dict[str, Any]]]  # type: ignore[assignment]
    """Several conversations, each a list of messages."""


class CompletionBody(Sampled):
    prompt: str | list[int] | list[str | list[int]]
    max_completion_tokens: int | None = None
    logprobs: int | None = None
    echo: bool = False
    add_special_tokens: bool = True


class EncodeBody(Body):
    model: str | None = None
    input: str | dict[str, Any] | list[str | dict[str, Any]]
    encoding_format: Literal["base64"] = "base64"
    mm_processor_kwargs: dict[str, Any] | None = None
    max_dynamic_patch: int | None = None
    min_dynamic_patch: int | None = None


class EncodedImage(Strict):
    object: Literal["image_embeds"]
    index: int
    image_embeds: str
    """A safetensors file in base64: one tensor [tiles, tokens, hidden]."""
    tiles: int
    cached_tiles: int
    """Tiles that had been encoded before."""
    image_tokens: int
    """Tokens that the picture takes in a prompt, without the two around it."""
    width: int
    height: int


class EncodeUsage(Strict):
    image_tokens: int
    tiles: int
    cached_tiles: int


class EncodedList(Strict):
    object: Literal["list"]
    model: str
    data: list[EncodedImage]
    usage: EncodeUsage


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
    """An option without effect: reasoning is given as it is, not summed up."""


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
