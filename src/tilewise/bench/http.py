"""Connection: as much of HTTP/1.1 as a client that sends load needs, over asyncio's streams.

A benchmark often runs on the machine of its server. There, what a general client does for each piece of an answer
costs as much as a small model's token, and hundreds of streams would wait for each other in this process. Beside a
server that only writes, on two shared cores, a client took this much processor time for each chunk of 400 streams, and
for each request of 300 streams with one chunk: this one 30 and 200 microseconds, h11 over the same streams 40 and 420,
httpx 220 and 6800, httpcore 410 a chunk.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

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
