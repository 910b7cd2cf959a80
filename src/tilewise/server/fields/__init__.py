"""Every field of every request body: what it does, or why it does nothing, or why it is refused.

The tables are the only place that says so: bodies are checked against them, and documentation can be made of them.
"""

from tilewise.server.fields.field import Field, FieldTable, UnknownFields
from tilewise.server.fields.generation import CHAT, COMPLETION, DETOKENIZE, ENCODE, TOKENIZE
from tilewise.server.fields.responses import RESPONSES

TABLES = {table.route: table for table in (CHAT, COMPLETION, RESPONSES, TOKENIZE, DETOKENIZE)}
"""Tables of `tilewise serve`, by route; ENCODE is of `tilewise encode-server`."""

KNOWN = frozenset(name for table in (*TABLES.values(), ENCODE) for name in table.names)

__all__ = [
    "CHAT",
    "COMPLETION",
    "DETOKENIZE",
    "ENCODE",
    "KNOWN",
    "RESPONSES",
    "TABLES",
    "TOKENIZE",
    "Field",
    "FieldTable",
    "UnknownFields",
]
