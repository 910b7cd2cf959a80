"""The fields of a body of Anthropic's Messages API."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field as Limits

from tilewise.server import openapi_bodies
from tilewise.server.body import Field, Given, all_refused, inert, refused, works
from tilewise.server.prompt_fields import PictureFields


class AnthropicTool(Given):
    """A function that the model may call; tools that run at Anthropic have other types."""

    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    type: Literal["custom"] = "custom"
    strict: bool | None = None


class AnthropicToolChoice(Given):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class Thinking(Given):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    """An option without effect: `max_tokens` bounds thinking and text together."""
    display: str | None = None
    """An option without effect: thinking is given as it is."""


class OutputFormat(Given):
    type: Literal["json_schema"]
    schema_: dict[str, Any]


class OutputOptions(Given):
    format: OutputFormat | None = None
    effort: str | None = None
    """An option without effect: `thinking` says whether the model thinks."""


class ConversationOfMessages(PictureFields):
    """The fields that make the prompt, whether it is answered or counted."""

    shapes = openapi_bodies.ANTHROPIC_SHAPES
    others: ClassVar[tuple[Field, ...]] = (
        inert("context_management", "Conversations are taken as they are sent."),
        inert("cache_control", "Prefixes of prompts are cached in any case."),
        inert("betas", "What they switch on is there, or is refused by its own name."),
        refused("mcp_servers", "The server asks no other servers: call their tools, and send results.", []),
        refused("container", "Nothing is run here."),
    )

    model: str | None = works("One of the served names; absent = the first of them.")
    messages: list[dict[str, Any]] = works("The conversation, in turns of user and assistant.", ...)
    system: str | list[dict[str, Any]] | None = works("The system message: a text, or blocks of text.")
    tools: list[AnthropicTool] | None = works("Functions that the model may call.")
    tool_choice: AnthropicToolChoice | None = works("auto, any, none, or one tool by name.")
    thinking: Thinking | None = works("enabled or adaptive = think first, where the model was trained to.")
    output_config: OutputOptions | None = works("format: a JSON schema that the answer follows.")
    output_format: OutputFormat | None = works("Older name of output_config.format.")
    chat_template_kwargs: dict[str, Any] | None = works("As in /v1/chat/completions.")


class MessagesBody(ConversationOfMessages):
    route = "/v1/messages"
    examples = openapi_bodies.ANTHROPIC
    others = (
        *ConversationOfMessages.others,
        inert("metadata", "Nothing is kept of who asks."),
        inert("service_tier", "There is one tier."),
        inert("inference_geo", "There is one place."),
        inert("speed", "There is one speed."),
        refused("stop", "Its name here is stop_sequences.", []),
        refused("max_completion_tokens", "Its name here is max_tokens."),
        refused("prompt", "It belongs to /v1/completions: send messages."),
        refused("input", "It belongs to /v1/responses: send messages."),
        *all_refused("It belongs to /v1/chat/completions.", n=1, logprobs=False, response_format={}, stream_options={}),
    )

    max_tokens: Annotated[int, Limits(ge=1)] = works("Most tokens of the answer, as far as they fit.", ...)
    stop_sequences: list[str] | None = works("Texts that end the answer.")
    stream: bool = works("Answer as server-sent events.", False)
    temperature: float | None = works("0 = greedy.")
    top_p: float | None = works("In (0, 1].")
    top_k: int | None = works("0 or -1 = all tokens.")
    seed: int | None = works("The same seed gives the same answer.")


class CountTokensBody(ConversationOfMessages):
    route = "/v1/messages/count_tokens"
    examples = openapi_bodies.COUNT_TOKENS
