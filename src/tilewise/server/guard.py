"""The door: what every request passes before a route sees it, as one ASGI layer.

Keys, the size of bodies, request ids and the count of requests in flight. It does not know what routes do.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_OPEN = ("/health", "/ping")
"""Paths that need no key: whoever asks learns only that there is a server."""
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_HEADER_BYTES = 2**16  # of all headers together


class BodyTooLarge(Exception):
    """Raised inside the application while it reads a body that declared no size."""


@dataclass(slots=True)
class Door:
    """An ASGI application that lets others through to `app`."""

    app: ASGIApp
    keys: Sequence[str] = ()
    open_paths: Sequence[str] = ()
    """Paths that need no key beside those of all servers."""
    max_body_bytes: int = 64 * 2**20
    max_headers: int = 256
    echo_request_id: bool = False
    _digests: list[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self._digests = [_digest(key.encode()) for key in self.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _answer(send, *refusal)
        else:
            await self._pass(scope, receive, send, headers)

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, object] | None:
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if len(scope["headers"]) > self.max_headers or size > _HEADER_BYTES:
            return 431, _headers_too_large(len(scope["headers"]), size, self.max_headers)
        if self._needs_key(scope) and not self._knows(headers):
            return 401, {"error": "Unauthorized"}
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > self.max_body_bytes:
            return 413, _too_large(declared, self.max_body_bytes)
        return None

    def _needs_key(self, scope: Scope) -> bool:
        return bool(self._digests) and scope["method"] != "OPTIONS" and scope["path"] not in (*_OPEN, *self.open_paths)

    def _knows(self, headers: Headers) -> bool:
        """Compares digests, with all keys whatever matches, so that time says nothing about them."""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip().encode("latin-1", "replace"))
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return any(matches) and scheme.lower() == "bearer"

    async def _pass(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = False
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_body_bytes:
                raise BodyTooLarge
            return message

        async def labelled(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if self.echo_request_id:
                    MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self.app(scope, counted, labelled)
        except BodyTooLarge:
            if not started:
                await _answer(send, 413, _too_large(f"more than {received - 1}", self.max_body_bytes))


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _too_large(size: str, limit: int) -> object:
    message = f"The body has {size:.20} bytes, the limit is {limit}: send smaller pictures, or URLs in their place."
    return {"error": {"message": message, "type": "Request Entity Too Large", "param": None, "code": 413}}


def _headers_too_large(count: int, size: int, most: int) -> object:
    message = f"The request has {count} headers of {size} bytes, the limits are {most} and {_HEADER_BYTES}: send fewer."
    return {"error": {"message": message, "type": "Request Header Fields Too Large", "param": None, "code": 431}}


async def _answer(send: Send, status: int, body: object) -> None:
    data = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 413:
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
