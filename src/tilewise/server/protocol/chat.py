"""/v1/chat/completions."""

from __future__ import annotations

from typing import Any, Literal

from tilewise.server.protocol.common import Given, Sampled

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
    """Several conversations."""
