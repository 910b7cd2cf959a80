"""Every field of every request body: what it does, or why it does nothing, or why it is refused.

The tables are the only place that says so: bodies are checked against them, and documentation can be made of them.
"""

from tilewise.server.fields.chat import CHAT
from tilewise.server.fields.completion import COMPLETION
from tilewise.server.fields.encode import ENCODE
from tilewise.server.fields.field import Field, FieldTable
from tilewise.server.fields.responses import RESPONSES
from tilewise.server.fields.tokenize import DETOKENIZE, TOKENIZE
from tilewise.server.fields.unknown import UnknownFields

TABLES = {table.route: table for table in (CHAT, COMPLETION, RESPONSES, TOKENIZE, DETOKENIZE)}
"""Of `tilewise serve`, by route; ENCODE is of another server."""

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
