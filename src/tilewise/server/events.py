"""Server-sent events: how chunks look on the wire."""

from __future__ import annotations

import json
from typing import Any

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


def data_event(body: dict[str, Any]) -> bytes:
    return f"data: {_json(body)}\n\n".encode()


def named_event(body: dict[str, Any]) -> bytes:
    """An event of the Responses API, whose type is also its name."""
    return f"event: {body['type']}\ndata: {_json(body)}\n\n".encode()


def _json(body: dict[str, Any]) -> str:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
