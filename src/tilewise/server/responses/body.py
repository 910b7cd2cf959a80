"""The fields of a body of the Responses API."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from tilewise.server import openapi_bodies
from tilewise.server.body import Field, Given, inert, refused, works
from tilewise.server.chat.tools import FlatTool, Tool, ToolChoice
from tilewise.server.foreign_fields import DIALECTS, OF_MEDIA, PROVIDER, SYSTEM
from tilewise.server.generation import GenerationFields
from tilewise.server.prompt_fields import SUCCEEDED, Effort, PromptFields, without

_FORM = "Its name here is text.format, {}."
_JSON = _FORM.format("of type json_schema")
_RENAMED: tuple[Field, ...] = (
    refused("response_format", _FORM.format("with name and schema beside the type"), {"type": "text"}),
    refused("text_format", _JSON),
    refused("guided_json", _JSON),
    refused("guided_regex", "Its name here is structured_outputs.regex."),
    refused("guided_choice", "Its name here is structured_outputs.choice."),
    refused("guided_grammar", "Its name here is structured_outputs.grammar."),
    refused("guided_whitespace_pattern", "Its name here is structured_outputs.whitespace_pattern."),
    refused("structural_tag", "Its name here is structured_outputs.structural_tag."),
    *SUCCEEDED,
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


def _in_words_of_responses(field: Field) -> Field:
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
        *_RENAMED,
        *(refused(name, _CHATS, False, [], "") for name in _ALONE_IN_CHAT),
        refused("add_generation_prompt", _CHATS, True),
        refused("modalities", "Answers are text.", ["text"]),
        *(
            _in_words_of_responses(field)
            for field in without((*OF_MEDIA, *DIALECTS), *(field.name for field in _RENAMED))
        ),
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
