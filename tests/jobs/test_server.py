"""The engines of a cluster, in this process in place of Ray's: some cannot start, some die, and the others go on."""

from __future__ import annotations

import asyncio
import json
import logging

import httpx
import pytest

from tilewise.config import EngineConfig
from tilewise.errors import EngineDead, InvalidConfig
from tilewise.jobs.server import ClusterServer, EngineActor, EngineLost
from tilewise.server.config import ServerConfig


class FakeEngine:
    """An engine on a node of this name. It does not start for a reason, or is lost while it is asked."""

    def __init__(self, name: str, reason: str = "", lost: bool = False) -> None:
        self.name, self.reason, self.lost = name, reason, lost
        self.gone = asyncio.Event()

    async def node(self) -> str:
        return self.name

    async def start(self, engine: EngineConfig, server: ServerConfig, version: str) -> None:
        if self.reason:
            raise InvalidConfig(self.reason)

    async def post(self, path: str, body: bytes, request_id: str) -> httpx.Response:
        await asyncio.sleep(0)
        if self.lost:
            self.gone.set()
            raise EngineLost("ActorDiedError")
        return httpx.Response(200, text=self.name)

    async def stay(self) -> None:
        await self.gone.wait()
        raise EngineLost("ActorDiedError")

    def kill(self) -> None:
        self.gone.set()


class HereEngine(EngineActor):
    """The actor itself, called as a method where Ray would send a message; its engine is a process as on any node."""

    async def node(self) -> str:
        return "this machine"

    def kill(self) -> None:
        self.local.parts.service.engine.discard()
        self.local.parts.service.close()


async def asked(engines: list, *, restarts: int = 3, requests: int = 1) -> list[httpx.Response]:
    """The answers of a cluster that makes these engines, one behind the other."""
    left = iter(engines)
    config = ServerConfig(max_engine_restarts=restarts)
    cluster = ClusterServer(lambda: next(left), len(engines), EngineConfig.of(), config)
    keeping = [asyncio.create_task(cluster.keep()) for _ in engines]
    try:
        await cluster.until_ready()
        while len(cluster._in_flight) + sum(task.done() for task in keeping) < len(engines):
            await asyncio.sleep(0.01)
        body = json.dumps({"prompt": "one two", "max_tokens": 2}).encode()
        names = [f"request-{number}" for number in range(requests)]
        return await asyncio.gather(*(cluster.post("/v1/completions", body, name) for name in names))
    finally:
        for task in keeping:
            task.cancel()
        await asyncio.gather(*keeping, return_exceptions=True)


def test_an_engine_that_cannot_start_is_named_and_left_out(caplog, monkeypatch):
    monkeypatch.setattr("tilewise.server.assemble.set_up_logs", lambda *_: None)
    caplog.set_level(logging.ERROR)

    async def both() -> list[httpx.Response]:
        return await asked([FakeEngine("10.0.0.2", "No space for the model."), HereEngine()])

    [reply] = asyncio.run(both())
    assert (reply.status_code, reply.json()["usage"]["completion_tokens"]) == (200, 2)
    assert caplog.messages == ["An engine on 10.0.0.2 cannot start, and is left out: No space for the model."]


def test_with_no_engine_left_the_run_ends_with_the_reason_of_the_last():
    async def none() -> None:
        await asked([FakeEngine("one", "First."), FakeEngine("two", "Second.")])

    with pytest.raises(InvalidConfig, match=r"^Second\.$"):
        asyncio.run(none())


def test_requests_go_where_the_fewest_are():
    async def two() -> list[httpx.Response]:
        return await asked([FakeEngine("one"), FakeEngine("two")], requests=6)

    assert sorted(reply.content for reply in asyncio.run(two())) == [b"one"] * 3 + [b"two"] * 3


def test_what_a_lost_engine_was_asked_may_be_asked_again(caplog):
    async def one() -> list[httpx.Response]:
        return await asked([FakeEngine("one", lost=True)])

    [reply] = asyncio.run(one())
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    assert "gone (ActorDiedError)" in reply.json()["error"]["message"]


def test_engines_that_die_too_often_end_the_run():
    async def dying() -> None:
        cluster = ClusterServer(
            lambda: FakeEngine("one", lost=True), 1, EngineConfig.of(), ServerConfig(max_engine_restarts=0)
        )
        keeping = asyncio.create_task(cluster.keep())
        await cluster.until_ready()
        await cluster.post("/v1/completions", b"{}", "request-0")
        await asyncio.wait_for(keeping, 30)
        await cluster.until_ready()

    with pytest.raises(EngineDead, match="raise --max-engine-restarts"):
        asyncio.run(dying())
