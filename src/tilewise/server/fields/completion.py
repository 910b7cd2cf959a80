"""The fields of /v1/completions."""

from __future__ import annotations

from tilewise.server.fields.field import FieldTable, refused, works
from tilewise.server.fields.sampling import SAMPLING, without

COMPLETION = FieldTable(
    "/v1/completions",
    (
        works("prompt", "A text, token ids, or a list of either."),
        works("logprobs", "Log-probabilities of this many likeliest tokens at each position."),
        works("echo", "Begin the answer with the prompt; with max_tokens 0 nothing else is answered."),
        works("add_special_tokens", "Whether a text gets the tokenizer's start token."),
        refused("suffix", "The models continue texts, they do not fill gaps.", ""),
        *without(SAMPLING, "mm_processor_kwargs"),
        refused("mm_processor_kwargs", "Text completions take no pictures: use /v1/chat/completions.", {}),
    ),
)
