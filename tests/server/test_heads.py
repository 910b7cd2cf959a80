"""Connections whose clients do not say what they want, against a real socket with little patience."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

from tilewise.server.serve import PatientProtocol

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bytes]]
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Hurried(PatientProtocol):
    patience = 0.2


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers at once what has no body, and else after longer than the patience."""
    if scope["path"] == "/slow":
        await asyncio.sleep(0.5)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def served(talk: Talk) -> bytes:
    async def run() -> bytes:
        config = uvicorn.Config(app, port=0, http=Hurried, lifespan="off", log_config=None)
        server = uvicorn.Server(config)
        config.load()
        server.lifespan = config.lifespan_class(config)
        await server.startup()
        port = server.servers[0].sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            return await talk(reader, writer)
        finally:
            writer.close()
            await server.shutdown()

    return asyncio.run(asyncio.wait_for(run(), 20))


async def drip(writer: asyncio.StreamWriter, data: bytes, count: int) -> None:
    for _ in range(count):
        if writer.is_closing():
            return
        writer.write(data)
        await asyncio.sleep(0.05)


def test_who_says_nothing_is_not_waited_for():
    async def talk(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> bytes:
        return await reader.read()

    assert served(talk) == b""


def test_who_says_a_little_now_and_then_is_not_either():
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"GET / HTTP/1.1\r\n")
        dripping = asyncio.ensure_future(drip(writer, b"x: a\r\n", 400))
        try:
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            dripping.cancel()

    assert served(talk) == b""


def test_an_answer_may_take_longer_than_the_patience():
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(REQUEST.replace(b"/ ", b"/slow ", 1))
        return await reader.readuntil(b"ok")

    assert served(talk).startswith(b"HTTP/1.1 200")


def test_a_second_request_may_come_later():
    """An idle connection is uvicorn's matter, which has its own time for it."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(REQUEST)
        await reader.readuntil(b"ok")
        await asyncio.sleep(0.4)
        writer.write(REQUEST)
        return await reader.readuntil(b"ok")

    assert served(talk).startswith(b"HTTP/1.1 200")


def test_a_body_that_nobody_reads_does_not_hold_the_connection():
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
        await reader.readuntil(b"ok")
        dripping = asyncio.ensure_future(drip(writer, b"a", 400))
        try:
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            dripping.cancel()

    assert served(talk) == b""
