"""HTTP as servers send it: framed in three ways, kept open or not, cut short, or no HTTP at all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tilewise.bench.client import Address, BrokenConnection, Connection

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
WHOLE = CHUNKED + b"3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nTrailer: 1\r\n\r\n"
SIZED = b"HTTP/1.1 404 Not Found\r\ncontent-length: 5\r\n\r\nabcde"
OPEN = b"HTTP/1.0 200 OK\r\n\r\nabc"


class Asked:
    """What was answered, what is left of the connection, and what the server got."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, bytes]] = []
        self.usable: list[bool] = []
        self.received = b""


def ask(*replies: bytes, ends: bool = False, cut: int = 7) -> Asked:
    """One request for each reply, over one connection, on which replies come in pieces of `cut` bytes."""
    asked = Asked()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in replies:
            asked.received += await reader.readuntil(b"\r\n\r\n")
            for start in range(0, len(reply), cut):
                writer.write(reply[start : start + cut])
                await writer.drain()
                await asyncio.sleep(0)
        if ends:
            writer.close()
        else:
            await reader.read()
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        connection = await Connection.open(Address.of(f"http://127.0.0.1:{port}", verify=True))
        try:
            await _each(connection, replies, asked)
        finally:
            await connection.close()
            server.close()
            await server.wait_closed()

    asyncio.run(asyncio.wait_for(run(), 60))
    return asked


async def _each(connection: Connection, replies: Sequence[bytes], asked: Asked) -> None:
    for _ in replies:
        status = await connection.ask("GET", "/x", {"X-More": "yes"})
        asked.answers.append((status, b"".join([part async for part in connection.parts()])))
        asked.usable.append(connection.usable)


@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_bodies_in_chunks_and_of_a_length_follow_each_other(cut):
    asked = ask(WHOLE, SIZED, WHOLE, cut=cut)
    assert asked.answers == [(200, b"abc0123456789"), (404, b"abcde"), (200, b"abc0123456789")]
    assert asked.usable == [True, True, True]
    assert asked.received.count(b"GET /x HTTP/1.1\r\nHost: 127.0.0.1:") == 3
    assert asked.received.count(b"X-More: yes") == 3


def test_a_body_without_an_end_lasts_until_the_connection_ends():
    asked = ask(OPEN, ends=True)
    assert asked.answers == [(200, b"abc")]
    assert asked.usable == [False]


def test_a_connection_that_will_close_is_not_used_again():
    asked = ask(b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 0\r\n\r\n")
    assert asked.answers == [(200, b"")]
    assert asked.usable == [False]


def test_what_stands_before_the_answer_is_passed_over():
    assert ask(b"HTTP/1.1 100 Continue\r\n\r\n" + SIZED).answers == [(404, b"abcde")]


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"HTTP/1.1 200",
        b"SSH-2.0-server\r\n\r\n",
        b"HTTP/1.1 two\r\n\r\n",
        CHUNKED + b"5\r\nab",
        CHUNKED + b"zz\r\n",
        CHUNKED + b"3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 2**21,
    ],
)
def test_what_is_cut_short_or_no_http_is_a_broken_connection(reply):
    with pytest.raises(BrokenConnection, match=r"\S"):
        ask(reply, ends=True, cut=2**16)


@pytest.mark.parametrize(
    ("url", "port", "tls"), [("http://h", 80, False), ("https://h/path", 443, True), ("http://[::1]:81", 81, False)]
)
def test_addresses(url, port, tls):
    address = Address.of(url, verify=False)
    assert (address.port, address.tls is not None) == (port, tls)
    assert address.host == ("::1" if "::1" in url else "h")
