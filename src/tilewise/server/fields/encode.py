"""The fields of /v1/encode."""

from __future__ import annotations

from tilewise.server.fields.chat import CHAT
from tilewise.server.fields.field import FieldTable, inert, refused, works

_OF_CHAT = ("mm_processor_kwargs", "max_dynamic_patch", "min_dynamic_patch")

ENCODE = FieldTable(
    "/v1/encode",
    (
        works("model", "One of the served names; absent = the first of them."),
        works("input", "A picture or a list of them: each a URL, or a part of type image_url as messages have it."),
        works("encoding_format", "base64, in which files of tensors come; absent = the same."),
        *(field for field in CHAT.fields if field.name in _OF_CHAT),
        refused("dimensions", "Rows have the width of the model's: leave it out."),
        refused("messages", "Send the pictures as input: what is asked about them is for `tilewise serve`."),
        inert("user", "nothing is kept of who asks"),
    ),
)
