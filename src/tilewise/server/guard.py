"""The door: what every request passes before a route sees it, as one ASGI layer.

Keys, the size and the pace of bodies, and request ids. It does not know what routes do.
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

from tilewise.server.intake import BodyTooLarge, Intake, Pace
from tilewise.server.problem import Problem

ALWAYS_OPEN = ("/health", "/ping")
"""Paths that need no key, whatever the options say: whoever asks learns only that there is a server."""
OPEN = (*ALWAYS_OPEN, "/version", "/metrics")
"""Paths that need no key by default, since whoever scrapes a server or waits for it has none; they tell of no request.
vLLM's middleware guards /v1, /v2, /inference and /cohere alone."""
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_HEADER_BYTES = 2**16  # of all headers together


@dataclass(slots=True)
class Door:
    """An ASGI application that lets others through to `app`."""

    app: ASGIApp
    keys: Sequence[str] = ()
    open_paths: Sequence[str] = OPEN
    """Paths that need no key."""
    root_path: str = ""
    """Path under which a proxy shows the server; it may have taken it off what it asks for, or not."""
    max_body_bytes: int = 64 * 2**20
    pace: Pace = Pace()
    max_headers: int = 256
    echo_request_id: bool = False
    _digests: list[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self._digests = [_digest(key.encode()) for key in self.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self._place(scope)
        headers, intake = Headers(scope=scope), Intake(receive, self.max_body_bytes, self.pace)
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _answer(_drained(send, intake), *refusal, intake)
        else:
            await self._pass(scope, intake, send, headers)

    def _place(self, scope: Scope) -> None:
        """Give every path the form of ASGI, `root_path` and the route's path behind it, whichever way a proxy asked.

        What follows takes `root_path` off once, so the path that is looked up here is the one that is routed there.
        """
        if self.root_path:
            scope.update(root_path=self.root_path, path=self.root_path + _route_path(scope["path"], self.root_path))

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, object] | None:
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if len(scope["headers"]) > self.max_headers or size > _HEADER_BYTES:
            return 431, _headers_too_large(len(scope["headers"]), size, self.max_headers)
        if self._needs_key(scope) and not self._knows(headers):
            return 401, {"error": "Unauthorized"}
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > self.max_body_bytes:
            return 413, Problem.of(BodyTooLarge.of(declared, self.max_body_bytes)).body
        return None

    def _needs_key(self, scope: Scope) -> bool:
        path = scope["path"].removeprefix(self.root_path)
        return bool(self._digests) and scope["method"] != "OPTIONS" and path not in self.open_paths

    def _knows(self, headers: Headers) -> bool:
        """Compares digests, with all keys whatever matches, so that time says nothing about them."""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip().encode("latin-1", "replace"))
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return any(matches) and scheme.lower() == "bearer"

    async def _pass(self, scope: Scope, intake: Intake, send: Send, headers: Headers) -> None:
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def labelled(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if self.echo_request_id:
                    headers["X-Request-Id"] = request_id
                if intake.refused:
                    headers["Connection"] = "close"
            await send(message)

        # HEAD is GET whose body the HTTP library does not send.
        scope["method"] = "GET" if scope["method"] == "HEAD" else scope["method"]
        await self.app(scope, intake, _drained(labelled, intake))


def _route_path(path: str, root: str) -> str:
    return path.removeprefix(root) if path == root or path.startswith(f"{root}/") else path


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _headers_too_large(count: int, size: int, most: int) -> object:
    message = f"The request has {count} headers of {size} bytes, the limits are {most} and {_HEADER_BYTES}: send fewer."
    return Problem(431, message).body


async def _answer(send: Send, status: int, body: object, intake: Intake) -> None:
    data = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 413:
        intake.refused = True
        headers.append((b"connection", b"close"))  # the rest of the body is not waited for
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


def _drained(send: Send, intake: Intake) -> Send:
    """Sends all of an answer, then what is left of a refused body is thrown away, and only then the exchange ends."""

    async def drained(message: Message) -> None:
        if intake.refused and message["type"] == "http.response.body" and not message.get("more_body", False):
            await send({**message, "more_body": True})
            await intake.drain()
            message = {"type": "http.response.body", "body": b""}
        await send(message)

    return drained
