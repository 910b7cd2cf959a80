"""ASGI layers that every request passes: keys and limits, the body on its way in, and counts of requests."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tilewise.errors import TilewiseError
from tilewise.server.problems import Problem, unauthorized
from tilewise.server.request_id import HEADER, RequestId

_SMALL = 2**14
"""Bytes of a body that waits for no turn."""


class BodyTooLarge(TilewiseError):
    """A body that is larger than the server takes; if no size was declared, this shows only while it is read."""

    http_status = 413

    @classmethod
    def of(cls, size: str, limit: int) -> BodyTooLarge:
        return cls(
            f"The body has {size:.20} bytes, the limit is {limit}: send smaller pictures, or URLs; the server's "
            "--max-body-mb raises it."
        )


class BodyTooSlow(TilewiseError):
    """A body that comes so slowly that it holds a connection for nothing."""

    http_status = 408


@dataclass(frozen=True, slots=True)
class BodyPace:
    """The least pace at which a body has to come."""

    grace: float = 30.0
    """Seconds that a body may take whatever its size."""
    bytes_per_second: float = 8192.0
    """Bytes that have to come in each second after the grace, on average."""
    rest: float = 5.0
    """Seconds in which what is left of a refused body is thrown away."""

    def seconds(self, size: int) -> float:
        """Return the seconds after which more than `size` bytes have to be there."""
        return self.grace + size / self.bytes_per_second


class BodyTurns:
    """The turns in which the pieces of all bodies are taken in, a few each time the event loop comes round.

    Hundreds of clients may send megabytes at the same moment, and thousands short texts. Between the turns everybody
    else is answered, and whoever waits for a turn is not read from. Large bodies and small ones have turns apart.
    """

    at_a_time = 4
    """Pieces; HTTP libraries hand over a quarter of a MiB at most."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._left = self.at_a_time
        self._coming = False

    async def take(self) -> None:
        """Return when it is the caller's turn."""
        if self._left > 0 and not self._waiting:
            self._left -= 1
        else:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            self._call_again()
            await turn
        self._call_again()

    def _call_again(self) -> None:
        if not self._coming:
            self._coming = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._coming, self._left = False, self.at_a_time
        while self._waiting and self._left:
            turn = self._waiting.popleft()
            if not turn.done():  # else its client has left
                turn.set_result(None)
                self._left -= 1
        if self._waiting:
            self._call_again()


@dataclass(slots=True)
class BodyReceiver:
    """The `receive` of one request, which checks the size and the pace of its body, and waits for its turns."""

    receive: Receive
    limit: int
    pace: BodyPace
    turns: BodyTurns
    """Turns of pieces of large bodies."""
    small_turns: BodyTurns
    """Turns of bodies that are small, and whole: with them a request's own work on the event loop begins."""
    refused: bool = False
    """True if the body was given up before its end."""
    _size: int = 0
    _ended: bool = False
    _started: float = field(default_factory=time.monotonic)

    async def __call__(self) -> Message:
        """Receive the next message. Raises BodyTooLarge or BodyTooSlow.

        Behind the body there is only the client's leaving to wait for, and no limit of time.
        """
        if self._ended:
            return await self.receive()
        try:
            async with asyncio.timeout(self._started + self.pace.seconds(self._size) - time.monotonic()):
                message = self._count(await self.receive())
        except TimeoutError:
            self.refused = True
            raise BodyTooSlow(
                f"Of the body, {self._size} bytes came in {self.pace.seconds(self._size):.0f} seconds: send it faster, "
                "or URLs in place of pictures."
            ) from None
        if self._size > self.limit:
            self.refused = True
            raise BodyTooLarge.of(f"more than {self.limit}", self.limit)
        came = time.monotonic()
        await (self.small_turns if self._ended and self._size <= _SMALL else self.turns).take()
        self._started += time.monotonic() - came  # the client did not owe anything meanwhile
        return message

    async def drain(self) -> None:
        """Throw away what still comes, so that a client that is still sending gets to read its answer.

        A connection that is closed with bytes unread is reset, and an answer on its way is lost with it.
        """
        most = self._size + 2 * self.limit  # what is even larger is cut off
        with suppress(TimeoutError):
            async with asyncio.timeout(self.pace.rest):
                while not self._ended and self._size < most:
                    self._count(await self.receive())

    def _count(self, message: Message) -> Message:
        self._size += len(message.get("body", b""))
        self._ended = message["type"] != "http.request" or not message.get("more_body", False)
        return message


ALWAYS_OPEN = ("/health", "/ping")
"""Paths that need no key, whatever the options say: whoever asks learns only that there is a server."""
OPEN = (*ALWAYS_OPEN, "/version", "/metrics")
"""Paths that need no key by default, since whoever scrapes a server or waits for it has none; they tell of no request.
vLLM's middleware guards /v1, /v2, /inference and /cohere alone."""
_HEADER_BYTES = 2**16  # of all headers together
_TWO_ENDS = "The request has Content-Length and Transfer-Encoding, which a proxy may read otherwise: send one of them."
_CLOSING = {"Connection": "close"}  # of answers to requests whose bodies are not waited for


@dataclass(slots=True)
class RequestGuard:
    """Middleware before `app`: keys, limits of headers, the size and the pace of bodies, and request ids.

    It does not know what routes do.
    """

    app: ASGIApp
    keys: Sequence[str] = ()
    open_paths: Sequence[str] = OPEN
    """Paths that need no key."""
    open_below: str | None = None
    """Path below which nothing needs a key, such as /ui: what is there brings the key itself when it asks the API."""
    root_path: str = ""
    """Path under which a proxy shows the server; the proxy may take it off the paths that it asks for, or leave it."""
    max_body_bytes: int = 64 * 2**20
    pace: BodyPace = BodyPace()
    max_headers: int = 256
    echo_request_id: bool = False
    _turns: BodyTurns = field(init=False, default_factory=BodyTurns)
    _small_turns: BodyTurns = field(init=False, default_factory=BodyTurns)
    _digests: list[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self._digests = [_digest(key.encode()) for key in self.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self._place(scope)
        headers = Headers(scope=scope)
        intake = BodyReceiver(receive, self.max_body_bytes, self.pace, self._turns, self._small_turns)
        refusal = self._refusal(scope, headers)
        if refusal is None:
            await self._pass(scope, intake, send, headers)
        else:
            intake.refused = "connection" in refusal.headers
            await refusal(scope, receive, _drained(send, intake))

    def _place(self, scope: Scope) -> None:
        """Give every path the form of ASGI, `root_path` and the route's path behind it, whichever way a proxy asked.

        What follows takes `root_path` off once, so the path that is looked up here is the one that is routed there.
        """
        if self.root_path:
            scope.update(root_path=self.root_path, path=self.root_path + _route_path(scope["path"], self.root_path))

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        count, size = len(scope["headers"]), sum(len(name) + len(value) for name, value in scope["headers"])
        if count > self.max_headers or size > _HEADER_BYTES:
            limits = f"the limits are {self.max_headers} and {_HEADER_BYTES}"
            return Problem(431, f"The request has {count} headers of {size} bytes, {limits}: send fewer.").response()
        if "transfer-encoding" in headers and "content-length" in headers:
            return Problem(400, _TWO_ENDS).response(_CLOSING)
        if self._needs_key(scope) and not self._knows(headers):
            return unauthorized(scope["path"])
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > self.max_body_bytes:
            return Problem.of(BodyTooLarge.of(declared, self.max_body_bytes)).response(_CLOSING)
        return None

    def _needs_key(self, scope: Scope) -> bool:
        path = scope["path"].removeprefix(self.root_path)
        below = self.open_below is not None and f"{path}/".startswith(f"{self.open_below}/")
        is_open = below or path in self.open_paths
        return bool(self._digests) and scope["method"] != "OPTIONS" and not is_open

    def _knows(self, headers: Headers) -> bool:
        """True if the request brings one of the keys.

        Digests are compared, with all keys whatever matches, so that the time it takes says nothing about them.
        """
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if not scheme and (key := headers.get("x-api-key", "")):  # as clients of Anthropic's API send it
            scheme = "bearer"
        given = _digest(key.strip().encode("latin-1", "replace"))
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return any(matches) and scheme.lower() == "bearer"

    async def _pass(self, scope: Scope, intake: BodyReceiver, send: Send, headers: Headers) -> None:
        request_id = RequestId.of(headers.get(HEADER))
        scope.setdefault("state", {})["request_id"] = request_id  # which a route may change for the body's

        async def labelled(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if self.echo_request_id:
                    headers[HEADER] = request_id.text
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


def _drained(send: Send, intake: BodyReceiver) -> Send:
    """Return a `send` that throws away the rest of a refused body after the answer, and only then ends the exchange.

    Once an exchange has ended its connection is closed, and one that is closed with bytes unread is reset, by which the
    client may lose the answer. So the last message is held back until the rest of the body was read, or has taken too
    long.
    """

    async def drained(message: Message) -> None:
        if intake.refused and message["type"] == "http.response.body" and not message.get("more_body", False):
            await send({**message, "more_body": True})
            await intake.drain()
            message = {"type": "http.response.body", "body": b""}
        await send(message)

    return drained


_UNCOUNTED = ("/metrics", "/health", "/load", "/ping", "/version", "/server_info")
"""Routes that probes ask all day, which vLLM leaves out, too."""
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_FINE = (0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, *(step / 2 for step in range(2, 11)), 7.5, 10, 30, 60)
_COARSE = (0.1, 0.5, 1)


class HttpCounter:
    """Middleware that counts and times requests on their way to `app`.

    The metrics have the names that vLLM's servers and dashboards of their traffic use. Labels are bounded, whatever
    clients send: a handler is the template of a route, or `none`, and a status is its first digit.
    """

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self._app = app
        self._requests = Counter(
            "http_requests", "Requests over HTTP, by route", ["handler", "method", "status"], registry=registry
        )
        self._received = Summary(
            "http_request_size_bytes", "Declared length of requests", ["handler"], registry=registry
        )
        self._sent = Summary("http_response_size_bytes", "Declared length of answers", ["handler"], registry=registry)
        self._fine = Histogram(
            "http_request_duration_highr_seconds",
            "From a request to its whole answer",
            buckets=_FINE,
            registry=registry,
        )
        self._coarse = Histogram(
            "http_request_duration_seconds",
            "The same, by route",
            ["handler", "method"],
            buckets=_COARSE,
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, sent = time.perf_counter(), 500, "0"
        inner = dict(scope)  # a copy, in which the router notes the route that it chose

        async def watched(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status, sent = message["status"], Headers(raw=message["headers"]).get("content-length", "0")
            await send(message)

        try:
            await self._app(inner, receive, watched)
        finally:
            handler = getattr(inner.get("route"), "path", "none")
            if handler not in _UNCOUNTED:
                self.count(handler, scope, status, int(sent), time.perf_counter() - began)

    def count(self, handler: str, scope: Scope, status: int, sent: int, seconds: float) -> None:
        """Count one request that was answered."""
        method = scope["method"] if scope["method"] in _METHODS else "other"
        declared = Headers(scope=scope).get("content-length", "0")
        self._requests.labels(handler, method, f"{status // 100}xx").inc()
        self._received.labels(handler).observe(int(declared) if declared.isdecimal() else 0)
        self._sent.labels(handler).observe(sent)
        self._fine.observe(seconds)
        self._coarse.labels(handler, method).observe(seconds)
