"""LoadClient: sends requests to a server, and notes when each chunk of an answer comes.

A moment is taken as soon as bytes are there, before they are parsed: what parsing costs this process is in no figure
of the answer that is parsed. Nothing that a server does raises an error; it becomes the failure of the answer.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx

from tilewise.bench.http import Address, BrokenConnection, ConnectionPool, ServerUnreachable
from tilewise.bench.requests import AnswerCollector, CommonFields, Dialect, RequestOutcome, SampleRequest, message_of
from tilewise.host import is_here

UNREACHABLE, BROKEN = "no connection", "connection lost"
_LOOKS, _PAUSE = 3, 0.3  # how often and after how many seconds a server is looked for that seems to be gone


@dataclass(frozen=True)
class Target:
    """A server: its address without a path, and how it is spoken to."""

    url: str
    endpoint: str
    dialect: Dialect
    headers: dict[str, str] = field(default_factory=dict)
    verify: bool = True

    def client(self) -> httpx.Client:
        """Return a client for what is asked before a run. Use it as a context manager."""
        return httpx.Client(headers=self.headers, verify=self.verify, timeout=60.0, trust_env=not is_here(self.url))


class LoadClient:
    """A client that sends the requests of a run to one server. Use it as a context manager."""

    def __init__(self, target: Target, asking: CommonFields) -> None:
        self.target = target
        self._asking = asking
        self._connections = ConnectionPool(Address.of(target.url, target.verify))

    async def __aenter__(self) -> LoadClient:
        return self

    async def __aexit__(self, *_: object) -> None:
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
        collector = AnswerCollector(sent, sent - began, queued, self.target.dialect)
        headers = {"Content-Type": "application/json", "X-Request-Id": request_id, **self.target.headers}
        try:
            async with self._connections.one() as connection:
                status = await connection.ask("POST", self._path(self.target.endpoint), headers, body)
                if status >= 300:
                    return collector.failed(f"HTTP {status}", message_of(await connection.body()))
                async for part in connection.parts():
                    collector.feed(part)
        except ServerUnreachable as error:
            return collector.failed(UNREACHABLE, str(error))
        except BrokenConnection as error:
            return collector.failed(BROKEN, str(error))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            return collector.failed("not an answer", f"{type(error).__name__}: {error}")
        return collector.answer()

    async def is_gone(self) -> bool:
        """Return whether the server, asked several times, takes no connection any more."""
        for _ in range(_LOOKS):
            with suppress(ServerUnreachable):
                async with self._connections.one():
                    return False
            await asyncio.sleep(_PAUSE)
        return True

    async def metrics(self) -> str:
        """Return the text of /metrics; empty where the server has none."""
        with suppress(ServerUnreachable, BrokenConnection):
            async with self._connections.one() as connection:
                status = await connection.ask("GET", self._path("/metrics"), self.target.headers)
                found = await connection.body()
                return found.decode("utf-8", "replace") if status == 200 else ""
        return ""

    def _path(self, endpoint: str) -> str:
        """Return the endpoint's path, behind whatever path the server's address has."""
        return urlsplit(self.target.url).path + endpoint
