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
_INFERENCE = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/invocations")


class BodyTooLarge(Exception):
    """Raised inside the application while it reads a body that declared no size."""


@dataclass(slots=True)
class Door:
    """An ASGI application that lets others through to `app`."""

    app: ASGIApp
    keys: Sequence[str] = ()
    max_body_bytes: int = 64 * 2**20
    echo_request_id: bool = False
    in_flight: int = 0
    """Requests of inference routes that are being answered."""
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
        elif scope["path"] in _INFERENCE:
            self.in_flight += 1
            try:
                await self._pass(scope, receive, send, headers)
            finally:
                self.in_flight -= 1
        else:
            await self._pass(scope, receive, send, headers)

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, object] | None:
        if self._digests and scope["method"] != "OPTIONS" and scope["path"] not in _OPEN and not self._knows(headers):
            return 401, {"error": "Unauthorized"}
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > self.max_body_bytes:
            return 413, _too_large(declared, self.max_body_bytes)
        return None

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


async def _answer(send: Send, status: int, body: object) -> None:
    data = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 413:
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
