"""GET /tokenizer_info, where --enable-tokenizer-info-endpoint asks for it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tilewise.server.context import context_of
from tilewise.server.openapi.operation import Operation
from tilewise.server.protocol.answers import TokenizerInfo
from tilewise.server.routes.json_route import plain_router
from tilewise.weights.folder import optional_json

router = plain_router()
OPERATIONS = {"tokenizer_info": Operation(gives="The tokenizer's configuration.", answer=TokenizerInfo)}
_PATHS = ("vocab_file", "merges_file", "name_or_path", "tokenizer_file")
"""Keys that may hold paths of files on the server, which are not shown."""


@router.get("/tokenizer_info")
async def tokenizer_info(raw: Request) -> Response:
    """What the checkpoint says of its tokenizer, and of the template that it names for chats."""
    return JSONResponse(await asyncio.to_thread(_read, context_of(raw).checkpoint))


def _read(folder: Path) -> dict[str, Any]:
    found = {key: _plain(value) for key, value in optional_json(folder / "tokenizer_config.json").items()}
    template = folder / "chat_template.jinja"
    if "chat_template" not in found and template.is_file():
        found["chat_template"] = template.read_text(encoding="utf-8")
    found.setdefault("tokenizer_class", "PreTrainedTokenizerFast")  # transformers' own for a tokenizer.json alone
    return {key: value for key, value in found.items() if key not in _PATHS}


def _plain(value: Any) -> Any:
    """Return a special token's text, and any other value as it is."""
    return value["content"] if isinstance(value, dict) and value.get("__type") == "AddedToken" else value
