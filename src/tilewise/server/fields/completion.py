"""The fields of /v1/completions."""

from __future__ import annotations

from tilewise.server.fields.field import FieldTable, refused, works
from tilewise.server.fields.sampling import SAMPLING, without

_OF_PICTURES = ("mm_processor_kwargs", "max_dynamic_patch", "min_dynamic_patch")

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
        *without(SAMPLING, *_OF_PICTURES),
        *(refused(name, "Text completions take no pictures: use /v1/chat/completions.", {}) for name in _OF_PICTURES),
    ),
)
