"""Every field of every request body, route by route.

A field that works is declared once, with its type and its sentence; `others` are what clients send besides. Bodies are
checked against both; the OpenAPI document and docs/api.md are made of them.
"""

from __future__ import annotations

from typing import Any, Literal

from tilewise.server import openapi_bodies
from tilewise.server.anthropic.body import CountTokensBody, MessagesBody
from tilewise.server.body import Body, fields_of, inert, refused, works
from tilewise.server.chat.tools import FlatTool, Tool, ToolChoice
from tilewise.server.foreign_fields import DIALECTS, OF_MEDIA, PROVIDER
from tilewise.server.generation import CompletionFields
from tilewise.server.prompt_fields import SUCCEEDED, ConversationFields, Effort, TilingFields, without
from tilewise.server.responses.body import ResponsesBody

_MEDIA = refused("media_io_kwargs", "Only video.num_frames and video.fps can be set, in chat.")
_TEMPLATE = refused("chat_template", "Prompts follow the built-in template that the model was trained with.")
_SHARED = (*PROVIDER, *DIALECTS)
"""Fields of chat and text completions."""


class ChatBody(ConversationFields, CompletionFields):
    route = "/v1/chat/completions"
    examples = openapi_bodies.CHAT
    shapes = openapi_bodies.CHAT_SHAPES
    others = (
        refused("documents", "The models have no place for documents: put them into a message.", []),
        _TEMPLATE,
        refused("prompt", "It belongs to /v1/completions: send messages."),
        refused("input", "It belongs to /v1/responses: send messages."),
        refused("instructions", "Put them into a message of role system."),
        refused("max_output_tokens", "Its name here is max_tokens."),
        *SUCCEEDED,
        refused("modalities", "Answers are text.", ["text"]),
        refused("audio", "Answers are text."),
        inert("prediction", "It makes some providers faster; --speculative-config does so here."),
        refused("web_search_options", "The server looks nothing up: leave it out."),
        refused("verbosity", "Say in a message how long the answer should be.", "medium"),
        refused("text", "Its name here is response_format, for text.format.", {}, {"format": {"type": "text"}}),
        refused("reasoning", "Its name here is reasoning_effort, for reasoning.effort.", {}),
        refused("suffix", "The models continue texts, they do not fill gaps.", ""),
        *OF_MEDIA,
        *_SHARED,
    )

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
    explain: bool = works("What became of each picture's tiles, and where the time went, under explanation.", False)
    return_boxes: bool = works("Boxes that an answer names, read out of it, under boxes of its message.", False)


NOT_IN_BATCHES = (
    refused("n", "A batch has one answer for each conversation: send a conversation as often.", 1),
    refused("stream", "A batch comes whole: send false, or conversations on their own.", False),
    refused("stream_options", "A batch is not streamed: leave it out.", {}),
    refused("tools", "A batch calls no tools: send conversations with tools on their own.", []),
    refused("tool_choice", "A batch calls no tools: leave it out.", "none"),
)


class BatchedChatBody(ChatBody):
    route = "/v1/chat/completions/batch"
    examples = openapi_bodies.BATCHED_CHAT
    shapes = openapi_bodies.BATCH_SHAPES
    others = (*NOT_IN_BATCHES, *ChatBody.others)

    messages: list[list[dict[str, Any]]] = works(  # type: ignore[assignment]
        "A list of conversations, each a list of messages.", ...
    )


_OF_PICTURES = (
    *("mm_processor_kwargs", "max_dynamic_patch", "min_dynamic_patch"),
    *(field.name for field in OF_MEDIA),
)
_PREFIX = "Put it at the beginning of the prompt."
_PROMPT_FIELDS = (
    refused("prefill", "Put it at the end of the prompt.", ""),
    *(refused(name, _PREFIX, "", [], {}) for name in ("system", "system_prompt", "systemInstruction")),
    refused("system_instruction", _PREFIX, "", {}),
    refused("thinking", "A prompt is continued as it is: use /v1/chat/completions."),
    refused("template", "A prompt is continued as it is: leave it out.", ""),
    refused("context", "Put the earlier turns into the prompt.", []),
)
_CHAT_ONLY = "It belongs to /v1/chat/completions: a prompt is continued as it is."


class CompletionBody(CompletionFields):
    route = "/v1/completions"
    examples = openapi_bodies.COMPLETION
    others = (
        refused("messages", "They belong to /v1/chat/completions: send a prompt."),
        refused("input", "It belongs to /v1/responses: send a prompt."),
        refused("max_output_tokens", "Its name here is max_tokens."),
        refused("suffix", "The models continue texts, they do not fill gaps.", ""),
        refused("tools", _CHAT_ONLY, []),
        refused("tool_choice", _CHAT_ONLY, "none", "auto"),
        refused("functions", _CHAT_ONLY, []),
        refused("function_call", _CHAT_ONLY, "none", "auto"),
        refused("chat_template", _CHAT_ONLY),
        refused("documents", _CHAT_ONLY, []),
        refused("instructions", _PREFIX, ""),
        refused("text", "A text to continue is the prompt; the form of an answer is response_format.", {}),
        refused("top_logprobs", "Its name here is logprobs, a number.", 0),
        *_PROMPT_FIELDS,
        *without((_MEDIA, *_SHARED), *_OF_PICTURES, *(field.name for field in _PROMPT_FIELDS)),
        *(
            refused(name, "Text completions take no pictures: use /v1/chat/completions.", {}, [])
            for name in _OF_PICTURES
        ),
    )

    prompt: str | list[int] | list[str | list[int]] = works("A text, token ids, or a list of either.", ...)
    max_completion_tokens: int | None = works("The newer name of max_tokens.")
    logprobs: int | None = works("Log-probabilities of this many likeliest tokens at each position.")
    echo: bool = works("Begin the answer with the prompt; with max_tokens 0 nothing else is answered.", False)
    add_special_tokens: bool = works("Whether a text gets the tokenizer's start token.", True)


class TokenizeBody(ConversationFields):
    route = "/tokenize"
    examples = openapi_bodies.TOKENIZE
    shapes = openapi_bodies.CHAT_SHAPES
    others = (
        refused("return_offsets", "Offsets are not counted.", False),
        _TEMPLATE,
    )

    model: str | None = works("One of the served names; absent = the first of them.")
    prompt: str | None = works("A text; either this or messages.")
    messages: list[dict[str, Any]] | None = works("The conversation; see the parts of a message.")
    add_special_tokens: bool | None = works("Whether a text gets the tokenizer's start token; messages have their own.")
    return_token_strs: bool = works("The tokens as the vocabulary spells them, too.", False)
    tools: list[Tool] | None = works("Functions that the model may call.")


class DetokenizeBody(Body):
    route = "/detokenize"
    examples = openapi_bodies.DETOKENIZE

    model: str | None = works("One of the served names; absent = the first of them.")
    tokens: list[int] = works("Token ids.", ...)


class EncodeBody(TilingFields):
    route = "/v1/encode"
    examples = openapi_bodies.ENCODE
    shapes = openapi_bodies.ENCODE_SHAPES
    others = (
        refused("dimensions", "Rows have the width of the model's: leave it out."),
        refused("messages", "Send the pictures as input: what is asked about them is for `tilewise serve`."),
        inert("user", "Nothing is kept of who asks."),
    )

    model: str | None = works("One of the served names; absent = the first of them.")
    input: str | dict[str, Any] | list[str | dict[str, Any]] = works(
        "A picture or a list of them: each a URL, or a part of type image_url as messages have it.", ...
    )
    encoding_format: Literal["base64"] = works("base64, in which files of tensors come; absent = the same.", "base64")


BODIES: tuple[type[Body], ...] = (
    *(ChatBody, CompletionBody, ResponsesBody, MessagesBody, CountTokensBody, TokenizeBody, DetokenizeBody),
)
"""Bodies of `tilewise serve`; EncodeBody is of `tilewise encode-server`."""

KNOWN = frozenset(name for body in (*BODIES, EncodeBody) for name in fields_of(body))
"""Names of all fields."""
