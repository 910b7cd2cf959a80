"""LoadClient: sends requests to a server, and notes when each chunk of an answer comes.

A moment is taken as soon as bytes are there, before they are parsed: what parsing costs this process is in no figure
of the answer that is parsed. Nothing that a server does raises an error; it becomes the failure of the answer.

`Connection` speaks as much of HTTP/1.1 as that needs, over asyncio's streams. A benchmark often runs on the machine of
its server. There, what a general client does for each piece of an answer costs as much as a small model's token, and
hundreds of streams would wait for each other in this process. Beside a server that only writes, on two shared cores, a
client took this much processor time for each chunk of 400 streams, and for each request of 300 streams with one chunk:
this one 30 and 200 microseconds, h11 over the same streams 40 and 420, httpx 220 and 6800, httpcore 410 a chunk.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx

from tilewise.bench.requests import AnswerCollector, CommonFields, Dialect, RequestOutcome, SampleRequest, message_of
from tilewise.host import is_here

_PIECE = 2**16
_LONGEST_LINE = 2**20
_CONNECT = 60.0  # seconds
_BREAKS = (OSError, EOFError, ValueError, asyncio.LimitOverrunError)


class ServerUnreachable(Exception):
    """No connection to the server can be opened."""


class BrokenConnection(Exception):
    """The connection ended, or brought something that is no HTTP."""


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int
    tls: ssl.SSLContext | None
    shown: str
    """Host and port as the Host header has them."""

    @classmethod
    def of(cls, url: str, verify: bool) -> Address:
        parts = urlsplit(url)
        context = _context(verify) if parts.scheme == "https" else None
        return cls(parts.hostname or "", parts.port or (443 if context else 80), context, parts.netloc)


def _context(verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


class Connection:
    """A connection for one request after the other; `usable` says whether another may follow."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, shown: str) -> None:
        self._reader, self._writer, self._shown = reader, writer, shown
        self._headers: dict[str, str] = {}
        self._whole = True
        """True if nothing of the last answer is still to come."""

    @classmethod
    async def open(cls, address: Address) -> Connection:
        """Open a connection. Raises OSError, a TimeoutError among them."""
        opening = asyncio.open_connection(address.host, address.port, ssl=address.tls, limit=_LONGEST_LINE)
        return cls(*await asyncio.wait_for(opening, _CONNECT), address.shown)

    @property
    def usable(self) -> bool:
        closes = self._headers.get("connection", "").lower() == "close"
        return self._whole and not closes and not self._reader.at_eof() and not self._writer.is_closing()

    async def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> int:
        """Send a request, and return the status of the answer. Raises BrokenConnection."""
        fields = {"Host": self._shown, "Content-Length": str(len(body)), "Accept": "*/*", **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self._whole = False
        try:
            self._writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body)
            await self._writer.drain()
            return await self._head()
        except _BREAKS as error:
            raise BrokenConnection(str(error) or type(error).__name__) from None

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield the answer's body as it comes. Raises BrokenConnection."""
        try:
            async for part in self._body():
                yield part
        except _BREAKS as error:
            raise BrokenConnection(str(error) or type(error).__name__) from None
        self._whole = True

    async def body(self) -> bytes:
        """Return the whole body of the answer. Raises BrokenConnection."""
        return b"".join([part async for part in self.parts()])

    async def close(self) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def _head(self) -> int:
        status = 100
        while status < 200:  # "continue" and the like
            version, _, rest = (await self._line()).partition(" ")
            if not version.startswith("HTTP/1."):
                raise ValueError(f"this is no HTTP: {version!r:.40}")
            status, self._headers = int(rest[:3]), {}
            while line := await self._line():
                name, _, value = line.partition(":")
                self._headers[name.strip().lower()] = value.strip()
        return status

    async def _line(self) -> str:
        return (await self._reader.readuntil(b"\n")).decode("latin-1").rstrip("\r\n")

    async def _body(self) -> AsyncIterator[bytes]:
        if self._headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await self._line()).partition(";")[0], 16):
                yield (await self._reader.readexactly(size + 2))[:-2]
            while await self._line():  # trailers
                pass
        elif "content-length" in self._headers:
            if size := int(self._headers["content-length"]):
                yield await self._reader.readexactly(size)
        else:  # until the connection ends, which is its last use
            while part := await self._reader.read(_PIECE):
                yield part


class ConnectionPool:
    """The connections to one server. Those that are idle are kept for the next request."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._idle: list[Connection] = []

    @asynccontextmanager
    async def one(self) -> AsyncIterator[Connection]:
        """Yield an idle connection, or a new one. Raises ServerUnreachable."""
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
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            await connection.close()
        try:
            return await Connection.open(self._address)
        except (OSError, TimeoutError) as error:
            raise ServerUnreachable(str(error) or type(error).__name__) from None


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
