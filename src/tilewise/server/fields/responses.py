"""The fields of /v1/responses."""

from __future__ import annotations

from dataclasses import replace

from tilewise.server.fields.dialects import DIALECTS, OF_MEDIA, PICTURES, SYSTEM
from tilewise.server.fields.field import Field, FieldTable, inert, refused, works
from tilewise.server.fields.generation import PROVIDER, SAMPLING, without

_LIKE_CHAT = (
    *("frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias", "seed", "stop", "stop_token_ids"),
    *("include_stop_str_in_output", "ignore_eos", "top_k", "min_p", "min_tokens", "skip_special_tokens"),
    *("structured_outputs",),
)
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
    (
        works("model", "One of the served names; absent = the first of them."),
        works("input", "A text, or messages, calls and their results."),
        works("instructions", "The system message."),
        works("max_output_tokens", "Most tokens of the answer; absent = what the context leaves."),
        works("temperature", "0 = greedy."),
        works("top_p", "In (0, 1]."),
        works("top_logprobs", "Likeliest tokens at each position of the text."),
        works("include", "message.output_text.logprobs; nothing else can be added to an answer."),
        works("stream", "Answer as server-sent events."),
        works("store", "Keep the response for GET /v1/responses/ID, where VLLM_ENABLE_RESPONSES_API_STORE is 1."),
        works("previous_response_id", "Go on from a response that is kept."),
        works("background", "Answer at once, and work on; ask GET /v1/responses/ID for the answer."),
        works("enable_response_messages", "Prompt and answer as the model sees them, as text and token ids."),
        works("text", "format: text, json_object or json_schema."),
        works("tools", "Functions that the model may call."),
        works("tool_choice", "none, auto, required or one function."),
        works("parallel_tool_calls", "false = at most one call an answer."),
        works("reasoning", "effort: none or minimal = no thinking, any other = think first."),
        works("request_id", "Ends the id of the answer, unless the header X-Request-Id does."),
        works("priority", "Lower is served first, under --scheduling-policy priority."),
        works("cache_salt", "Cached prefixes are shared among requests of one salt alone."),
        works("mm_processor_kwargs", "max_dynamic_patch and its like, for this request's pictures."),
        *(field for field in SAMPLING if field.name in _LIKE_CHAT),
        works("include_reasoning", "false = the reasoning is left out of the answer."),
        works("chat_template_kwargs", "enable_thinking; whatever else has no effect on the built-in templates."),
        works("media_io_kwargs", "video.num_frames and video.fps; image.rgba_background_color."),
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
