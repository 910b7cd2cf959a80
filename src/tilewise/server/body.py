"""Bytes of a request to the object in them, or to an error that says what is wrong with them."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from tilewise.errors import InvalidRequest

MAX_DEPTH = 64
"""Objects and lists within each other. Schemas of tools nest, conversations hardly."""


def check_media_type(content_type: str | None) -> None:
    """Raises InvalidRequest unless the header says JSON; parameters such as a charset do not matter."""
    kind = (content_type or "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise InvalidRequest(
            f"Unsupported Media Type: Only 'application/json' is allowed, got {kind[:80] or 'none'!r}: "
            "send the header Content-Type: application/json."
        )


def parse_body(data: bytes) -> dict[str, Any]:
    """The JSON object of a request body. Raises InvalidRequest for everything that is not one."""
    try:
        body = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise _too_deep() from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The body is not UTF-8 (byte {error.start}): encode the JSON as UTF-8.") from None
    except ValueError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None
    if not isinstance(body, dict):
        raise InvalidRequest(f"The body must be a JSON object, got {_KINDS.get(type(body), 'null')}.")
    _check(body)
    return body


_KINDS: dict[type, str] = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "a boolean"}


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is beyond the range of numbers")
    return value


def _check(body: dict[str, Any]) -> None:
    """Depth, and characters that no UTF-8 can carry; level by level, so that no nesting ends this process."""
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
