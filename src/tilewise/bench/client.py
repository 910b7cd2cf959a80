"""LoadClient: sends requests to a server, and notes when each chunk of an answer comes.

A moment is taken as soon as bytes are there, before they are read: what reading costs this process is in no figure of
the answer that is read. Nothing that a server does raises; it is the answer's failure.
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

import httpx

from tilewise.bench.answers import Answer, Failure, Tokens
from tilewise.bench.dialects import Asking, Dialect, tokens_of
from tilewise.bench.samples import SampleRequest
from tilewise.sse import EventReader

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
        """On this machine, which a proxy does not know."""
        return httpx.URL(self.url).host in ("localhost", "127.0.0.1", "::1")

    def client(self) -> httpx.Client:
        """For what is asked before a run. Use it as a context."""
        return httpx.Client(headers=self.headers, verify=self.verify, timeout=60.0, trust_env=not self.is_near)


class Connections:
    """A client of one connection for each request under way, kept for the next one.

    The pool of one client for all looks through every connection whenever a request begins or ends. At hundreds at once
    that would take more time than it measures.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._idle: list[httpx.AsyncClient] = []
        self._certificates = httpx.create_ssl_context(verify=target.verify) if target.url.startswith("https") else False

    def prepare(self, count: int) -> None:
        """So many are there when they are needed."""
        self._idle += [self._new() for _ in range(count - len(self._idle))]

    @asynccontextmanager
    async def one(self) -> AsyncIterator[httpx.AsyncClient]:
        client = self._idle.pop() if self._idle else self._new()
        try:
            yield client
        finally:
            self._idle.append(client)

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().aclose()

    def _new(self) -> httpx.AsyncClient:
        """Answers may take as long as they like."""
        return httpx.AsyncClient(
            headers=self._target.headers,
            verify=self._certificates,
            timeout=httpx.Timeout(None, connect=60.0),
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=60.0),
            trust_env=not self._target.is_near,
        )


class LoadClient:
    """Use it as a context."""

    def __init__(self, target: Target, asking: Asking) -> None:
        self.target = target
        self._asking = asking
        self._connections = Connections(target)

    async def __aenter__(self) -> LoadClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connections.close()

    def prepare(self, requests: int) -> None:
        """For so many at once."""
        self._connections.prepare(requests)

    def body(self, request: SampleRequest) -> bytes:
        """Made before a run, so that no request waits for it."""
        return json.dumps(self.target.dialect.body(request, self._asking)).encode()

    async def send(self, body: bytes, request_id: str, began: float, queued: float = 0.0) -> Answer:
        """`began` is when the run did."""
        sent = time.perf_counter()
        notes = _Notes(sent, sent - began, queued, self.target.dialect)
        url = self.target.url + self.target.endpoint
        headers = {"content-type": "application/json", "x-request-id": request_id}
        try:
            async with (
                self._connections.one() as client,
                client.stream("POST", url, content=body, headers=headers) as response,
            ):
                if response.is_error:
                    return notes.failed(f"HTTP {response.status_code}", _words(await response.aread()))
                await notes.read(response)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            return notes.failed(UNREACHABLE, str(error) or type(error).__name__)
        except httpx.TransportError as error:
            return notes.failed(BROKEN, str(error) or type(error).__name__)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            return notes.failed("not an answer", f"{type(error).__name__}: {error}")
        return notes.answer()

    async def is_gone(self) -> bool:
        """Whether nothing listens there any more."""
        for _ in range(_LOOKS):
            try:
                async with self._connections.one() as client:
                    await client.get(f"{self.target.url}/health")
            except httpx.ConnectError:
                await asyncio.sleep(_PAUSE)
            except httpx.TransportError:
                return False
            else:
                return False
        return True

    async def metrics(self) -> str:
        """Empty where there are none."""
        try:
            async with self._connections.one() as client:
                found = await client.get(f"{self.target.url}/metrics")
        except httpx.TransportError:
            return ""
        return found.text if found.is_success else ""


class _Notes:
    """What has come of one answer; becomes an Answer."""

    def __init__(self, sent: float, start: float, queued: float, dialect: Dialect) -> None:
        self._sent, self._start, self._queued, self._dialect = sent, start, queued, dialect
        self._first: float | None = None
        self._latency = 0.0
        self._contents: list[float] = []
        self._texts: list[str] = []
        self._tokens = Tokens()
        self._failure: Failure | None = None
        self._whole = False

    async def read(self, response: httpx.Response) -> None:
        events = EventReader()
        async for chunk in response.aiter_raw():
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

    def answer(self) -> Answer:
        failure = self._failure
        if failure is None and not (self._whole and self._first is not None):
            failure = Failure("ended early", "the stream ended before the answer did")
        return self._with(failure)

    def failed(self, kind: str, text: str) -> Answer:
        return self._with(self._failure or Failure(kind, text[:_LONGEST]))

    def _with(self, failure: Failure | None) -> Answer:
        seen = (self._first, tuple(self._contents), self._latency, "".join(self._texts), self._tokens)
        return Answer(self._start, self._queued, *seen, failure)


def not_sent(start: float, queued: float) -> Answer:
    return Answer(start, queued, failure=Failure(NOT_SENT, "the server was gone"))


def _words(body: bytes) -> str:
    """The message of an error in OpenAI's form, else the beginning of the text."""
    text = body.decode("utf-8", "replace")
    try:
        found = json.loads(text)
        error = found.get("error", found)
        text = str(error.get("message") or error.get("detail") or text)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:_LONGEST]
