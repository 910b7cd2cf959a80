"""Bytes of a request to the object in them, or to an error that says what is wrong with them."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any, NoReturn

from tilewise.errors import InvalidField, InvalidRequest

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


def check_coding(content_encoding: str | None) -> None:
    """Raises InvalidRequest for a body that is compressed: what it grows to would have to be bounded as well."""
    coding = (content_encoding or "").strip().lower()
    if coding not in ("", "identity"):
        raise InvalidRequest(
            f"Content-Encoding: {coding[:80]!r} is not taken: send the body uncompressed, without this header."
        )


def parse_body(data: bytes) -> dict[str, Any]:
    """The JSON object of a request body. Raises InvalidRequest for everything that is not one."""
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
    """Of two values of one name, each reader takes another one, so that none is what was meant."""
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
