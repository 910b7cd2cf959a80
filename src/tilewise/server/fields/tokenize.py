"""The fields of /tokenize and /detokenize."""

from __future__ import annotations

from tilewise.server.fields.chat import CHAT
from tilewise.server.fields.field import FieldTable, refused, works

_OF_CHAT = (
    *("messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template", "chat_template_kwargs"),
    *("media_io_kwargs", "mm_processor_kwargs", "max_dynamic_patch", "min_dynamic_patch"),
    *("interleave_mm_strings", "enable_thinking"),
)

TOKENIZE = FieldTable(
    "/tokenize",
    (
        works("model", "One of the served names; absent = the first of them."),
        works("prompt", "A text; either this or messages."),
        works("add_special_tokens", "Whether a text gets the tokenizer's start token; messages have their own."),
        works("return_token_strs", "The tokens as the vocabulary spells them, too."),
        refused("return_offsets", "Offsets are not counted.", False),
        *(field for field in CHAT.fields if field.name in _OF_CHAT),
    ),
)
DETOKENIZE = FieldTable(
    "/detokenize",
    (
        works("model", "One of the served names; absent = the first of them."),
        works("tokens", "Token ids."),
    ),
)
