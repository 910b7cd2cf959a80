"""Every field of every request body: what it does, or why it does nothing, or why it is refused.

A field that works is declared once, with its type and its sentence, in `server/protocol/bodies.py`; here is what
clients send besides. Bodies are checked against these tables; the OpenAPI document and docs/api.md are made of them.
"""

from __future__ import annotations

from dataclasses import replace

from tilewise.server.fields.dialects import DIALECTS, OF_MEDIA, PICTURES, SYSTEM
from tilewise.server.fields.field import Field, FieldTable, inert, refused
from tilewise.server.protocol.bodies import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    EncodeBody,
    ResponsesBody,
    TokenizeBody,
)

PROVIDER: tuple[Field, ...] = (
    inert("user", "A name for the provider's own records; nothing is recorded here."),
    inert("metadata", "Labels for stored answers; none is stored here.", {}),
    inert("safety_identifier", "A name for the provider's own records; nothing is recorded here."),
    inert("prompt_cache_key", "A routing hint; cached prefixes are found by content here."),
    inert("prompt_cache_options", "A hint to a provider's cache, which here keeps what fits."),
    inert("prompt_cache_retention", "A hint to a provider's cache, which here keeps what fits."),
    inert("store", "Answers of this route are not kept.", False),
    inert("service_tier", "There is one tier.", "auto", "default", "standard_only"),
)
"""Fields for whoever runs a service for others."""

_MEDIA = refused("media_io_kwargs", "Only video.num_frames and video.fps can be set, in chat.")
_TEMPLATE = refused("chat_template", "Prompts follow the built-in template that the model was trained with.")
_SHARED = (*PROVIDER, *DIALECTS)
"""Fields of chat and text completions."""


def without(fields: tuple[Field, ...], *names: str) -> tuple[Field, ...]:
    return tuple(field for field in fields if field.name not in names)


CHAT = FieldTable(
    "/v1/chat/completions",
    ChatBody,
    (
        refused("documents", "The models have no place for documents: put them into a message.", []),
        _TEMPLATE,
        refused("prompt", "It belongs to /v1/completions: send messages."),
        refused("input", "It belongs to /v1/responses: send messages."),
        refused("instructions", "Put them into a message of role system."),
        refused("max_output_tokens", "Its name here is max_tokens."),
        refused("functions", "Its successor is tools.", []),
        refused("function_call", "Its successor is tool_choice.", "auto", "none"),
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
    ),
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

COMPLETION = FieldTable(
    "/v1/completions",
    CompletionBody,
    (
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
    ),
)


ENCODE = FieldTable(
    "/v1/encode",
    EncodeBody,
    (
        refused("dimensions", "Rows have the width of the model's: leave it out."),
        refused("messages", "Send the pictures as input: what is asked about them is for `tilewise serve`."),
        inert("user", "Nothing is kept of who asks."),
    ),
)


TOKENIZE = FieldTable(
    "/tokenize",
    TokenizeBody,
    (
        refused("return_offsets", "Offsets are not counted.", False),
        _TEMPLATE,
    ),
)
DETOKENIZE = FieldTable("/detokenize", DetokenizeBody)


_FORM = "Its name here is text.format, {}."
_JSON = _FORM.format("of type json_schema")
_OBJECT = _FORM.format("of type json_object")
_MOVED: tuple[Field, ...] = (
    refused("response_format", _FORM.format("with name and schema beside the type"), {"type": "text"}),
    refused("text_format", _JSON),
    refused("format", _JSON, "", {}),
    refused("response_schema", _JSON, {}),
    refused("guided_json", _JSON),
    refused("json_mode", _OBJECT, False),
    refused("guided_json_object", _OBJECT, False),
    refused("guided_regex", "Its name here is structured_outputs.regex."),
    refused("guided_choice", "Its name here is structured_outputs.choice."),
    refused("guided_grammar", "Its name here is structured_outputs.grammar."),
    refused("guided_whitespace_pattern", "Its name here is structured_outputs.whitespace_pattern."),
    refused("structural_tag", "Its name here is structured_outputs.structural_tag."),
    refused("functions", "Its successor is tools.", []),
    refused("function_call", "Its successor is tool_choice.", "auto", "none"),
    refused("reasoning_effort", "Its name here is reasoning.effort."),
    refused("enable_thinking", "Put it into chat_template_kwargs."),
    refused("max_dynamic_patch", "Put it into mm_processor_kwargs."),
    refused("min_dynamic_patch", "Put it into mm_processor_kwargs."),
    refused("interleave_mm_strings", "Put it into mm_processor_kwargs."),
    refused("verbosity", "Say in the input how long the answer should be.", "medium"),
    refused("logprobs", "Its name here is top_logprobs.", False),
    refused("num_return_sequences", "One answer comes: use /v1/chat/completions for more.", 1),
    refused("bad_words_list", "bad_words belongs to /v1/chat/completions.", []),
    *(refused(name, "Send pictures as input_image, in input.", [], {}) for name in PICTURES),
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
)


def _worded(field: Field) -> Field:
    """Return the field with a note in the names that this route has."""
    note = field.note
    for chat, here in _WORDS:
        note = note.replace(chat, here)
    return replace(field, note=note)


_STATE = "Conversations are gone on from by previous_response_id, or sent whole as input."

RESPONSES = FieldTable(
    "/v1/responses",
    ResponsesBody,
    (
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
    ),
)

TABLES = {table.route: table for table in (CHAT, COMPLETION, RESPONSES, TOKENIZE, DETOKENIZE)}
"""Tables of `tilewise serve`, by route; ENCODE is of `tilewise encode-server`."""

KNOWN = frozenset(name for table in (*TABLES.values(), ENCODE) for name in table.names)
