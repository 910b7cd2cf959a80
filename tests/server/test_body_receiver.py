"""Bodies that are too large or come too slowly, without a server around them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest

from tilewise.server.middleware import BodyPace, BodyReceiver, BodyTooLarge, BodyTooSlow, BodyTurns, RequestGuard

HURRIED = BodyPace(grace=0.02, bytes_per_second=1e9, rest=0.1)


def part(size: int, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": b"a" * size, "more_body": more}


class Client:
    """Sends its messages, then nothing more."""

    def __init__(self, messages: Iterable[dict[str, Any]]) -> None:
        self.messages = list(messages)
        self.received: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        if self.messages:
            return self.messages.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: dict[str, Any]) -> None:
        self.received.append(message)


def read_all(client: Client, limit: int = 100, pace: BodyPace = HURRIED) -> int:
    async def run() -> int:
        intake, size = BodyReceiver(client.receive, limit, pace, BodyTurns(), BodyTurns()), 0
        while True:
            message = await intake()
            size += len(message["body"])
            if not message["more_body"]:
                return size

    return asyncio.run(run())


def test_a_body_in_parts():
    assert read_all(Client([part(40), part(60, more=False)])) == 100


def test_one_byte_too_many():
    with pytest.raises(BodyTooLarge, match="more than 100 bytes, the limit is 100"):
        read_all(Client([part(40), part(61, more=False)]))


def test_a_body_that_never_ends():
    with pytest.raises(BodyTooSlow, match="Of the body, 40 bytes came in 0 seconds"):
        read_all(Client([part(40)]))


def test_what_has_come_buys_time():
    assert BodyPace(grace=30, bytes_per_second=8192).seconds(2**20) == 30 + 128


def test_behind_the_body_nothing_is_timed():
    """A request that is being answered may take as long as it takes."""

    async def run() -> None:
        client = Client([part(1, more=False)])
        intake = BodyReceiver(client.receive, 100, HURRIED, BodyTurns(), BodyTurns())
        await intake()
        leaving = asyncio.ensure_future(intake())
        await asyncio.sleep(0.1)
        assert not leaving.done()
        leaving.cancel()

    asyncio.run(run())


async def reading_app(scope: Any, receive: Any, send: Any) -> None:
    """Reads the body, and answers with the status of what goes wrong, as the routes do."""
    status = 200
    try:
        while (await receive())["more_body"]:
            pass
    except (BodyTooLarge, BodyTooSlow) as error:
        status = error.http_status
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


def through_the_door(client: Client, *headers: tuple[bytes, bytes]) -> list[dict[str, Any]]:
    door = RequestGuard(reading_app, max_body_bytes=100, pace=HURRIED)
    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
    asyncio.run(door(scope, client.receive, client.send))
    return client.received


def test_a_slow_body_ends_with_408_and_the_connection():
    start, body, end = through_the_door(Client([part(1)]))
    assert start["status"] == 408
    assert (b"connection", b"close") in start["headers"]
    assert (body["body"], end["body"]) == (b"{}", b"")


def test_the_rest_of_a_refused_body_is_read_before_the_end():
    """So that a client that is still sending reads its answer."""
    client = Client([part(101), part(50), part(0, more=False)])
    start, body, end = through_the_door(client)
    assert start["status"] == 413
    assert body["more_body"]
    assert not end.get("more_body")
    assert client.messages == []


def test_of_a_refused_body_no_more_than_twice_the_limit_is_thrown_away():
    client = Client([part(101)] + [part(60)] * 10)
    through_the_door(client)
    assert len(client.messages) == 6


def test_a_body_one_byte_too_large_is_read_to_its_end():
    """A part that stays unread resets the connection, and with it the answer."""
    client = Client([part(60), part(40), part(1, more=False)])
    through_the_door(client, (b"content-length", b"101"))
    assert client.messages == []


def test_a_declared_size_is_refused_without_reading():
    client = Client([{"type": "http.disconnect"}])
    start, body, _ = through_the_door(client, (b"content-length", b"101"))
    assert start["status"] == 413
    assert "has 101 bytes" in json.loads(body["body"])["error"]["message"]
