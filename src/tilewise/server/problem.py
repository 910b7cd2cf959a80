"""Exceptions to HTTP answers: a status, and OpenAI's error object with texts that clients know."""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError

from tilewise.errors import TilewiseError, TooLong, UnknownModel

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+(?=>)")
_BRANCHES = ("str", "int", "float", "bool")
"""Pydantic names the branch of a union in an error's place, as it does classes, lists and literals."""
_TYPES = {400: "BadRequestError", 404: "NotFoundError", 501: "NotImplementedError", 503: "ServiceUnavailableError"}


@dataclass(frozen=True)
class Problem:
    """One error as a client sees it."""

    status: int
    message: str
    param: str | None = None

    @classmethod
    def of(cls, error: BaseException) -> Problem:
        if isinstance(error, TooLong):
            return cls(400, _context_text(error), "max_tokens" if error.prompt_tokens < error.limit else None)
        if isinstance(error, ValidationError):
            return cls(400, *_first_error(error))
        if isinstance(error, UnknownModel):
            return cls(404, str(error), "model")
        if isinstance(error, TilewiseError):
            return cls(error.http_status, str(error), getattr(error, "param", None))
        return cls(500, "The server met an error of its own; its log says which.")

    @property
    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "InternalServerError" if self.status >= 500 else _phrase(self.status))
        message = _ADDRESS.sub("", self.message)
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.status}}


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase


def _context_text(error: TooLong) -> str:
    """vLLM's sentences, whose numbers clients read to shorten a conversation; then our own, which say what to do."""
    total = error.prompt_tokens + error.output_tokens
    return (
        f"This model's maximum context length is {error.limit} tokens. However, you requested {error.output_tokens} "
        f"output tokens and your prompt contains {error.prompt_tokens} input tokens, for a total of {total} tokens. "
        "Please reduce the length of the input prompt or the number of requested output tokens. "
        f"{error}"
    )


def _first_error(error: ValidationError) -> tuple[str, str]:
    """Message and field of the first thing that is wrong, as `messages[0].role`."""
    found = error.errors(include_url=False, include_context=False)[0]
    place = [
        part
        for part in found["loc"]
        if isinstance(part, int) or (part.isidentifier() and part.islower() and part not in _BRANCHES)
    ]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    reason = found["msg"].removeprefix("Value error, ").removeprefix("Input ")
    value = f", got {found['input']!r:.80}" if found["type"] != "missing" else ""
    return f"{param or 'body'}: {reason[:1].lower()}{reason[1:]}{value}.", param
