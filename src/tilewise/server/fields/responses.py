"""The fields of /v1/responses."""

from __future__ import annotations

from tilewise.server.fields.dialects import DIALECTS
from tilewise.server.fields.field import FieldTable, inert, refused, works
from tilewise.server.fields.sampling import PROVIDER, SAMPLING, without

_LIKE_CHAT = (
    *("frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias", "seed", "stop", "stop_token_ids"),
    *("include_stop_str_in_output", "ignore_eos", "top_k", "min_p", "min_tokens", "skip_special_tokens"),
    *("structured_outputs",),
)
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
        *(field for field in DIALECTS if field.name not in ("min_length", "max_length")),
    ),
)
