"""Request bodies are parsed here, and exceptions become HTTP answers with texts that clients know."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NoReturn

from pydantic import ValidationError

from tilewise.errors import InvalidField, InvalidRequest, TilewiseError, TooLong, UnknownModel

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+(?=>)")
_BRANCHES = ("str", "int", "float", "bool")
"""Branches of unions that pydantic names in an error's place, as it does classes, lists and literals."""
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
    """Return vLLM's sentences, whose numbers clients read to shorten a conversation; then our own, with the remedy."""
    total = error.prompt_tokens + error.output_tokens
    return (
        f"This model's maximum context length is {error.limit} tokens. However, you requested {error.output_tokens} "
        f"output tokens and your prompt contains {error.prompt_tokens} input tokens, for a total of {total} tokens. "
        "Please reduce the length of the input prompt or the number of requested output tokens. "
        f"{error}"
    )


def _first_error(error: ValidationError) -> tuple[str, str]:
    """Return the message about the first thing that is wrong, and its field, such as `messages[0].role`."""
    found = error.errors(include_url=False, include_context=False)[0]
    # Indices and fields of the body are kept, which are lower-case identifiers; pydantic's own words are not, but for
    # the branches.
    place = [
        part
        for part in found["loc"]
        if isinstance(part, int) or (part.isidentifier() and part.islower() and part not in _BRANCHES)
    ]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    reason = found["msg"].removeprefix("Value error, ").removeprefix("Input ")
    value = f", got {found['input']!r:.80}" if found["type"] != "missing" else ""
    return f"{param or 'body'}: {reason[:1].lower()}{reason[1:]}{value}.", param


MAX_DEPTH = 64
"""Most objects and lists within each other. Schemas of tools nest, conversations hardly."""


def check_media_type(content_type: str | None) -> None:
    """Raise InvalidRequest unless the header says JSON; parameters such as a charset do not matter."""
    kind = (content_type or "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise InvalidRequest(
            f"Unsupported Media Type: Only 'application/json' is allowed, got {kind[:80] or 'none'!r}: "
            "send the header Content-Type: application/json."
        )


def check_coding(content_encoding: str | None) -> None:
    """Raise InvalidRequest for a body that is compressed: what it grows to would have to be bounded as well."""
    coding = (content_encoding or "").strip().lower()
    if coding not in ("", "identity"):
        raise InvalidRequest(
            f"Content-Encoding: {coding[:80]!r} is not taken: send the body uncompressed, without this header."
        )


def parse_body(data: bytes) -> dict[str, Any]:
    """Return the JSON object of a request body. Raises InvalidRequest for everything that is not one."""
    try:
        text = data.decode(json.detect_encoding(data))  # of UTF-8, -16 and -32, with or without a byte order mark
        body = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_object)
    except RecursionError:
        raise _too_deep() from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The body is not UTF-8 (byte {error.start}): encode the JSON as UTF-8.") from None
    except InvalidField:
        raise
    except ValueError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None
    if not isinstance(body, dict):
        raise InvalidRequest(f"The body must be a JSON object, got {_KINDS.get(type(body), 'null')}.")
    _check(body)
    return body


_KINDS: dict[type, str] = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "a boolean"}


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object. Raises InvalidField if a name comes twice: readers differ in which value they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        shown = name[:80].encode("utf-8", "replace").decode()
        raise InvalidField(shown, f"The body has the name {shown!r} twice in one object: send one of the values.")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is beyond the range of numbers")
    return value


def _check(body: dict[str, Any]) -> None:
    """Raise InvalidRequest for a body that nests too deeply, or has characters that UTF-8 cannot carry.

    It is walked level by level, without recursion, so that no nesting ends this process.
    """
    level: list[Any] = [body]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.keys()
                inner += item.values()
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, str):
                _check_text(item)
        level = inner
        if not level:
            return
    if any(isinstance(item, (dict, list)) for item in level):
        raise _too_deep()
    for item in level:
        if isinstance(item, str):
            _check_text(item)


def _check_text(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"The body has half of a surrogate pair (\\u{ord(text[error.start]):04x}), which is no character: "
            "write both halves, or the character itself."
        ) from None


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"The body nests more than {MAX_DEPTH} objects and lists: flatten it.")
