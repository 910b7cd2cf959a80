"""Every field of every request body, route by route.

A field that works is declared once, with its type and its sentence; `others` are what clients send besides. Bodies are
checked against both; the OpenAPI document and docs/api.md are made of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from tilewise.server import openapi_bodies
from tilewise.server.body import Body, Field, Given, fields_of, inert, refused, works
from tilewise.server.chat.tools import FlatTool, Tool, ToolChoice
from tilewise.server.foreign_fields import DIALECTS, OF_MEDIA, PROVIDER, SYSTEM
from tilewise.server.generation import CompletionFields, GenerationFields


class PictureFields(Body):
    mm_processor_kwargs: dict[str, Any] | None = works("max_dynamic_patch and its like, for this request's pictures.")


class TilingFields(PictureFields):
    """The fields that say how pictures are cut into tiles."""

    max_dynamic_patch: int | None = works("The same as mm_processor_kwargs.max_dynamic_patch.")
    min_dynamic_patch: int | None = works("The same as mm_processor_kwargs.min_dynamic_patch.")


class PromptFields(PictureFields):
    chat_template_kwargs: dict[str, Any] | None = works(
        "enable_thinking; whatever else has no effect on the built-in templates."
    )
    media_io_kwargs: dict[str, Any] | None = works("video.num_frames and video.fps; image.rgba_background_color.")


class ConversationFields(PromptFields, TilingFields):
    """The fields that say how messages become a prompt."""

    add_generation_prompt: bool | None = works("false = the prompt ends with the last message.")
    continue_final_message: bool = works("Go on with the last message; needs add_generation_prompt false.", False)
    interleave_mm_strings: bool | None = works("true = pictures and texts keep their order; -hf models always keep it.")
    enable_thinking: bool | None = works("The same as chat_template_kwargs.enable_thinking.")


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
_MEDIA = refused("media_io_kwargs", "Only video.num_frames and video.fps can be set, in chat.")
_TEMPLATE = refused("chat_template", "Prompts follow the built-in template that the model was trained with.")
_SUCCEEDED = (
    refused("functions", "Its successor is tools.", []),
    refused("function_call", "Its successor is tool_choice.", "auto", "none"),
)
_SHARED = (*PROVIDER, *DIALECTS)
"""Fields of chat and text completions."""


def without(fields: tuple[Field, ...], *names: str) -> tuple[Field, ...]:
    return tuple(field for field in fields if field.name not in names)


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
        *_SUCCEEDED,
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
_OWN = (
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
        *_OWN,
        *without((_MEDIA, *_SHARED), *_OF_PICTURES, *(field.name for field in _OWN)),
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


_FORM = "Its name here is text.format, {}."
_JSON = _FORM.format("of type json_schema")
_MOVED: tuple[Field, ...] = (
    refused("response_format", _FORM.format("with name and schema beside the type"), {"type": "text"}),
    refused("text_format", _JSON),
    refused("guided_json", _JSON),
    refused("guided_regex", "Its name here is structured_outputs.regex."),
    refused("guided_choice", "Its name here is structured_outputs.choice."),
    refused("guided_grammar", "Its name here is structured_outputs.grammar."),
    refused("guided_whitespace_pattern", "Its name here is structured_outputs.whitespace_pattern."),
    refused("structural_tag", "Its name here is structured_outputs.structural_tag."),
    *_SUCCEEDED,
    refused("reasoning_effort", "Its name here is reasoning.effort."),
    refused("enable_thinking", "Put it into chat_template_kwargs."),
    refused("max_dynamic_patch", "Put it into mm_processor_kwargs."),
    refused("min_dynamic_patch", "Put it into mm_processor_kwargs."),
    refused("interleave_mm_strings", "Put it into mm_processor_kwargs."),
    refused("verbosity", "Say in the input how long the answer should be.", "medium"),
    refused("logprobs", "Its name here is top_logprobs.", False),
    refused("num_return_sequences", "One answer comes: use /v1/chat/completions for more.", 1),
    refused("bad_words_list", "bad_words belongs to /v1/chat/completions.", []),
)
"""Fields that have another name or another place here."""
_CHATS = "It belongs to /v1/chat/completions."
_ALONE_IN_CHAT = (
    *("bad_words", "allowed_token_ids", "prompt_logprobs", "truncate_prompt_tokens", "truncation_side"),
    *("return_token_ids", "return_tokens_as_token_ids", "echo", "continue_final_message", "documents"),
    *("chat_template", "suffix", "audio"),
)
_WORDS = (
    ("Its name here is max_tokens.", "Its name here is max_output_tokens."),
    ("set max_tokens", "set max_output_tokens"),
    ("Set max_tokens", "Set max_output_tokens"),
    (SYSTEM, "Its name here is instructions."),
    ("image_url, in messages", "input_image, in input"),
    ("response_format, of type", "text.format, of type"),
)


def _worded(field: Field) -> Field:
    """Return the field with a note in the names that this route has."""
    note = field.note
    for chat, here in _WORDS:
        note = note.replace(chat, here)
    return replace(field, note=note)


_STATE = "Conversations are gone on from by previous_response_id, or sent whole as input."


class TextFormat(Given):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = None
    strict: bool | None = None


class TextOptions(Given):
    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None
    """Anything but its default would have to be said in a message."""


class ReasoningOptions(Given):
    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    """An option without effect: reasoning is given as it is, not summed up."""


class ResponsesBody(PromptFields, GenerationFields):
    route = "/v1/responses"
    examples = openapi_bodies.RESPONSES
    shapes = openapi_bodies.RESPONSE_SHAPES
    others = (
        *without(PROVIDER, "metadata", "store", "service_tier"),
        inert("metadata", "Labels, which the answer repeats.", {}),
        refused("conversation", _STATE),
        refused("prompt", "Prompt templates are kept by the provider: send input and instructions."),
        refused("max_tool_calls", "Functions are called by you: count them there."),
        refused("truncation", "What does not fit is refused, not cut.", "disabled"),
        inert("service_tier", "There is one tier.", "auto", "default"),
        inert("stream_options", "Events carry no padding, and the last one has the usage.", {}),
        refused("context_management", _STATE, []),
        refused("previous_input_messages", _STATE),
        refused("messages", "They belong to /v1/chat/completions: send input."),
        refused("max_tokens", "Its name here is max_output_tokens."),
        refused("max_completion_tokens", "Its name here is max_output_tokens."),
        refused("logprob_token_ids", "Ask for top_logprobs; the likeliest tokens are reported.", []),
        refused("n", "One answer comes: use /v1/chat/completions for more.", 1),
        *_MOVED,
        *(refused(name, _CHATS, False, [], "") for name in _ALONE_IN_CHAT),
        refused("add_generation_prompt", _CHATS, True),
        refused("modalities", "Answers are text.", ["text"]),
        *(_worded(field) for field in without((*OF_MEDIA, *DIALECTS), *(field.name for field in _MOVED))),
    )

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


BODIES: tuple[type[Body], ...] = (ChatBody, CompletionBody, ResponsesBody, TokenizeBody, DetokenizeBody)
"""Bodies of `tilewise serve`; EncodeBody is of `tilewise encode-server`."""

KNOWN = frozenset(name for body in (*BODIES, EncodeBody) for name in fields_of(body))
"""Names of all fields."""
