"""The fields of /v1/completions."""

from __future__ import annotations

from tilewise.server.fields.dialects import OF_MEDIA
from tilewise.server.fields.field import FieldTable, refused, works
from tilewise.server.fields.sampling import SAMPLING, without

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
    (
        works("prompt", "A text, token ids, or a list of either."),
        works("max_completion_tokens", "The newer name of max_tokens."),
        works("logprobs", "Log-probabilities of this many likeliest tokens at each position."),
        works("echo", "Begin the answer with the prompt; with max_tokens 0 nothing else is answered."),
        works("add_special_tokens", "Whether a text gets the tokenizer's start token."),
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
        *without(SAMPLING, *_OF_PICTURES, *(field.name for field in _OWN)),
        *(
            refused(name, "Text completions take no pictures: use /v1/chat/completions.", {}, [])
            for name in _OF_PICTURES
        ),
    ),
)
