"""Types of the request bodies, route by route."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict

from tilewise.server.protocol.common import (
    Body,
    CompletionFields,
    ConversationFields,
    GenerationFields,
    Given,
    PromptFields,
    Strict,
    TilingFields,
    works,
)

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


class ChatBody(ConversationFields, CompletionFields):
    messages: list[dict[str, Any]] = works("The conversation; see the parts of a message.", ...)
    max_completion_tokens: int | None = works("The newer name of max_tokens.")
    logprobs: bool = works("Whether log-probabilities are reported.", False)
    top_logprobs: int | None = works("Likeliest tokens at each position; needs logprobs. -1 = all.")
    tools: list[Tool | FlatTool] | None = works("Functions that the model may call.")
    tool_choice: ToolChoice | None = works("none, auto, required or one function; absent = auto when there are tools.")
    parallel_tool_calls: bool = works("false = at most one call an answer.", True)
    reasoning_effort: Effort | None = works(
        "none or minimal = no thinking, any other = think first, if the model was trained to."
    )
    include_reasoning: bool = works("false = the reasoning is left out of the answer.", True)
    add_special_tokens: bool | None = works(
        "true has no effect; refused where the model has a start token: it stands there."
    )
    echo: bool = works("Begin the answer with the last message, if that is the assistant's.", False)


class BatchedChatBody(ChatBody):
    messages: list[list[dict[str, Any]]] = works(  # type: ignore[assignment]
        "A list of conversations, each a list of messages.", ...
    )


class CompletionBody(CompletionFields):
    prompt: str | list[int] | list[str | list[int]] = works("A text, token ids, or a list of either.", ...)
    max_completion_tokens: int | None = works("The newer name of max_tokens.")
    logprobs: int | None = works("Log-probabilities of this many likeliest tokens at each position.")
    echo: bool = works("Begin the answer with the prompt; with max_tokens 0 nothing else is answered.", False)
    add_special_tokens: bool = works("Whether a text gets the tokenizer's start token.", True)


class EncodeBody(TilingFields):
    model: str | None = works("One of the served names; absent = the first of them.")
    input: str | dict[str, Any] | list[str | dict[str, Any]] = works(
        "A picture or a list of them: each a URL, or a part of type image_url as messages have it.", ...
    )
    encoding_format: Literal["base64"] = works("base64, in which files of tensors come; absent = the same.", "base64")


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


class ResponsesBody(PromptFields, GenerationFields):
    input: str | list[dict[str, Any]] = works("A text, or messages, calls and their results.", ...)
    instructions: str | None = works("The system message.")
    max_output_tokens: int | None = works("Most tokens of the answer; absent = what the context leaves.")
    top_logprobs: int | None = works("Likeliest tokens at each position of the text.")
    text: TextOptions | None = works("format: text, json_object or json_schema.")
    tools: list[FlatTool | Tool] | None = works("Functions that the model may call.")
    tool_choice: ToolChoice | None = works("none, auto, required or one function.")
    parallel_tool_calls: bool = works("false = at most one call an answer.", True)
    reasoning: ReasoningOptions | None = works("effort: none or minimal = no thinking, any other = think first.")
    include_reasoning: bool | None = works("false = the reasoning is left out of the answer.")
    include: list[str] | None = works("message.output_text.logprobs; nothing else can be added to an answer.")
    store: bool | None = works(
        "Keep the response for GET /v1/responses/ID, where VLLM_ENABLE_RESPONSES_API_STORE is 1."
    )
    previous_response_id: str | None = works("Go on from a response that is kept.")
    background: bool = works("Answer at once, and work on; ask GET /v1/responses/ID for the answer.", False)
    enable_response_messages: bool = works("Prompt and answer as the model sees them, as text and token ids.", False)


class TokenizeBody(ConversationFields):
    model: str | None = works("One of the served names; absent = the first of them.")
    prompt: str | None = works("A text; either this or messages.")
    messages: list[dict[str, Any]] | None = works("The conversation; see the parts of a message.")
    add_special_tokens: bool | None = works("Whether a text gets the tokenizer's start token; messages have their own.")
    return_token_strs: bool = works("The tokens as the vocabulary spells them, too.", False)
    tools: list[Tool] | None = works("Functions that the model may call.")


class DetokenizeBody(Body):
    model: str | None = works("One of the served names; absent = the first of them.")
    tokens: list[int] = works("Token ids.", ...)
