"""LoadClient: sends requests to a server, and notes when each chunk of an answer comes.

A moment is taken as soon as bytes are there, before they are parsed: what parsing costs this process is in no figure
of the answer that is parsed. Nothing that a server does raises an error; it becomes the failure of the answer.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx

from tilewise.bench.http import Address, BrokenConnection, Connection
from tilewise.bench.requests import (
    CommonFields,
    Dialect,
    Failure,
    RequestOutcome,
    SampleRequest,
    TokenCounts,
    tokens_of,
)
from tilewise.sse import EventReader


class ServerUnreachable(Exception):
    """No connection to the server can be opened."""


UNREACHABLE, BROKEN, NOT_SENT = "no connection", "connection lost", "not sent"
_LONGEST = 300  # characters of a server's words that are kept
_LOOKS, _PAUSE = 3, 0.3  # how often and after how many seconds a server is looked for that seems to be gone


@dataclass(frozen=True)
class Target:
    """A server: its address without a path, and how it is spoken to."""

    url: str
    endpoint: str
    dialect: Dialect
    headers: dict[str, str] = field(default_factory=dict)
    verify: bool = True

    @property
    def is_near(self) -> bool:
        """True if the server is on this machine, which a proxy does not know."""
        return httpx.URL(self.url).host in ("localhost", "127.0.0.1", "::1")

    def client(self) -> httpx.Client:
        """Return a client for what is asked before a run. Use it as a context manager."""
        return httpx.Client(headers=self.headers, verify=self.verify, timeout=60.0, trust_env=not self.is_near)


class ConnectionPool:
    """The connections to one server. Those that are idle are kept for the next request."""

    def __init__(self, target: Target) -> None:
        self._address = Address.of(target.url, target.verify)
        self._idle: list[Connection] = []

    @asynccontextmanager
    async def one(self) -> AsyncIterator[Connection]:
        connection = await self._take()
        try:
            yield connection
        finally:
            if connection.usable:
                self._idle.append(connection)
            else:
                await connection.close()

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().close()

    async def _take(self) -> Connection:
        """Return an idle connection, or open one. Raises ServerUnreachable."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            await connection.close()
        try:
            return await Connection.open(self._address)
        except (OSError, TimeoutError) as error:
            raise ServerUnreachable(str(error) or type(error).__name__) from None


class LoadClient:
    """A client that sends the requests of a run to one server. Use it as a context manager."""

    def __init__(self, target: Target, asking: CommonFields) -> None:
        self.target = target
        self._asking = asking
        self._connections = ConnectionPool(target)

    async def __aenter__(self) -> LoadClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connections.close()

    def body(self, request: SampleRequest) -> bytes:
        """Return the body of a request. It is made before a run, so that no request waits for it."""
        return json.dumps(self.target.dialect.body(request, self._asking)).encode()

    async def send(self, body: bytes, request_id: str, began: float, queued: float = 0.0) -> RequestOutcome:
        """Send a request, and return what came of it.

        `began` is the beginning of the run on the clock of time.perf_counter, `queued` the seconds that the request has
        waited already.
        """
        sent = time.perf_counter()
        notes = AnswerCollector(sent, sent - began, queued, self.target.dialect)
        headers = {"Content-Type": "application/json", "X-Request-Id": request_id, **self.target.headers}
        try:
            async with self._connections.one() as connection:
                status = await connection.ask("POST", self._path(self.target.endpoint), headers, body)
                if status >= 300:
                    return notes.failed(f"HTTP {status}", _words(await _all(connection)))
                await notes.read(connection)
        except ServerUnreachable as error:
            return notes.failed(UNREACHABLE, str(error))
        except BrokenConnection as error:
            return notes.failed(BROKEN, str(error))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            return notes.failed("not an answer", f"{type(error).__name__}: {error}")
        return notes.answer()

    async def is_gone(self) -> bool:
        """Return whether the server, asked several times, takes no connection any more."""
        for _ in range(_LOOKS):
            try:
                await self._get("/health")
            except ServerUnreachable:
                await asyncio.sleep(_PAUSE)
            except BrokenConnection:
                return False
            else:
                return False
        return True

    async def metrics(self) -> str:
        """Return the text of /metrics; empty where the server has none."""
        try:
            status, found = await self._get("/metrics")
        except (ServerUnreachable, BrokenConnection):
            return ""
        return found.decode("utf-8", "replace") if status == 200 else ""

    async def _get(self, path: str) -> tuple[int, bytes]:
        async with self._connections.one() as connection:
            status = await connection.ask("GET", self._path(path), self.target.headers)
            return status, await _all(connection)

    def _path(self, endpoint: str) -> str:
        """Return the endpoint's path, behind whatever path the server's address has."""
        return urlsplit(self.target.url).path + endpoint


async def _all(connection: Connection) -> bytes:
    return b"".join([part async for part in connection.parts()])


class AnswerCollector:
    """A collector of what comes of one answer, chunk by chunk; it becomes a RequestOutcome."""

    def __init__(self, sent: float, start: float, queued: float, dialect: Dialect) -> None:
        self._sent, self._start, self._queued, self._dialect = sent, start, queued, dialect
        self._first: float | None = None
        self._latency = 0.0
        self._contents: list[float] = []
        self._texts: list[str] = []
        self._tokens = TokenCounts()
        self._failure: Failure | None = None
        self._whole = False

    async def read(self, connection: Connection) -> None:
        events = EventReader()
        async for chunk in connection.parts():
            moment = time.perf_counter() - self._sent
            for data in events.feed(chunk):
                if data == "[DONE]":
                    self._whole = True
                else:
                    self._take(json.loads(data), moment)

    def _take(self, event: dict[str, Any], moment: float) -> None:
        if event.get("error"):
            self._failure = Failure("error in the stream", _words(json.dumps(event).encode()))
        if event.get("usage"):
            self._tokens = tokens_of(event["usage"])
        for choice in (event.get("choices") or ())[:1]:
            self._latency = moment
            self._first = moment if self._first is None else self._first
            if text := self._dialect.shown(choice):
                self._contents.append(moment)
                self._texts.append(text)

    def answer(self) -> RequestOutcome:
        failure = self._failure
        if failure is None and not (self._whole and self._first is not None):
            failure = Failure("ended early", "the stream ended before the answer did")
        return self._with(failure)

    def failed(self, kind: str, text: str) -> RequestOutcome:
        return self._with(self._failure or Failure(kind, text[:_LONGEST]))

    def _with(self, failure: Failure | None) -> RequestOutcome:
        seen = (self._first, tuple(self._contents), self._latency, "".join(self._texts), self._tokens)
        return RequestOutcome(self._start, self._queued, *seen, failure)


def not_sent(start: float, queued: float) -> RequestOutcome:
    return RequestOutcome(start, queued, failure=Failure(NOT_SENT, "the server was gone"))


def _words(body: bytes) -> str:
    """Return the message of an error in OpenAI's form, else the beginning of the text."""
    text = body.decode("utf-8", "replace")
    try:
        found = json.loads(text)
        error = found.get("error", found)
        text = str(error.get("message") or error.get("detail") or text)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:_LONGEST]
