"""What a client makes of chunks, and of servers that do not behave."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tests.bench.scripted import ABORT, END, PAUSE, ScriptedServer, chunk, scripted
from tilewise.bench.client import LoadClient, Target
from tilewise.bench.load import Arrivals, LoadLevel, LoadResult, NotReady, run_load, wait_until_ready
from tilewise.bench.requests import CHAT, COMPLETIONS, CommonFields, Media, RequestOutcome, SampleRequest, TokenCounts
from tilewise.errors import InvalidConfig

ASKED = SampleRequest("Hello", 1, 8)
ROLE = chunk(delta={"role": "assistant", "content": ""})
USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 2,
    "prompt_tokens_details": {"image_tokens": 16, "tiles": 1, "cached_tokens": 4},
}


def ask(
    server: ScriptedServer, count: int = 1, load: LoadLevel = LoadLevel(), dialect=CHAT, request=ASKED, **asking
) -> LoadResult:
    async def run() -> LoadResult:
        target = Target(server.url, dialect.endpoint, dialect, {"x-more": "yes"})
        async with LoadClient(target, CommonFields("m", **asking)) as client:
            return await run_load(client, [client.body(request)] * count, load, lambda _: None)

    return asyncio.run(run())


def one(server: ScriptedServer, **more) -> RequestOutcome:
    return ask(server, **more).answers[0]


def test_the_first_token_is_the_first_that_shows():
    with scripted(
        ROLE, chunk(delta={"content": "a"}), chunk(delta={"content": "b"}), chunk(usage=USAGE), END
    ) as server:
        found = one(server)
    assert (found.failure, found.text) == (None, "ab")
    assert found.tokens == TokenCounts(prompt=9, completion=2, image=16, tiles=1, cached=4)
    assert found.first_chunk >= PAUSE
    assert found.first_content - found.first_chunk > PAUSE / 2
    assert found.latency == found.contents[1], "the chunk of the usage is no part of the answer"
    assert len(found.gaps) == 1


@pytest.mark.parametrize(
    "delta",
    [
        {"reasoning": "x"},
        {"reasoning_content": "x"},
        {"tool_calls": [{"index": 0, "function": {"name": "x", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "x"}}]},
    ],
)
def test_reasoning_and_calls_are_something_to_see(delta):
    with scripted(ROLE, chunk(delta=delta), chunk(delta={}, finish_reason="stop"), END) as server:
        found = one(server)
    assert (len(found.contents), found.text) == (1, "x")
    assert found.latency > found.contents[0]


@pytest.mark.parametrize(
    ("script", "status", "kind", "text"),
    [
        (['{"error": {"message": "too many"}}'], 429, "HTTP 429", "too many"),
        (["<html>no</html>"], 502, "HTTP 502", "<html>no</html>"),
        ([ROLE, chunk(delta={"content": "a"})], 200, "ended early", "before the answer did"),
        ([END], 200, "ended early", "before the answer did"),
        ([ROLE, {"error": {"message": "the engine died"}}, END], 200, "error in the stream", "the engine died"),
        (["{"], 200, "not an answer", "JSONDecodeError"),
        (["[1]"], 200, "not an answer", "AttributeError"),
    ],
)
def test_a_server_that_does_not_behave_is_a_failure_of_its_kind(script, status, kind, text):
    with scripted(*script, status=status) as server:
        found = one(server)
    assert found.failure is not None
    assert found.failure.kind == kind
    assert text in found.failure.text


def test_a_connection_that_breaks_off_is_no_answer():
    with scripted(ROLE, chunk(delta={"content": "a"}), ABORT) as server:
        found = one(server)
    assert found.failure is not None
    assert found.text == "a"


def test_a_conversation_has_its_media_behind_the_text():
    request = SampleRequest("What?", 1, 8, (Media.of("image", b"abc", "image/png"),))
    with scripted(ROLE, END) as server:
        one(server, request=request, ignore_eos=True, logprobs=2, extra={"top_k": 3})
        body, headers = server.bodies[0], server.headers[0]
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,YWJj"}}
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "What?"}, picture]}],
        "max_completion_tokens": 8,
        "logprobs": True,
        "top_logprobs": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        "top_k": 3,
    }
    assert headers["x-more"] == "yes"
    assert headers["x-request-id"] == "bench-0"


def test_a_completion_is_its_prompt():
    with scripted(chunk(text="a"), END) as server:
        assert one(server, dialect=COMPLETIONS).text == "a"
        assert server.bodies[0]["prompt"] == "Hello"
        assert server.bodies[0]["max_tokens"] == 8


def test_pictures_and_conversations_need_the_chat():
    with scripted() as server:
        for wrong in (SampleRequest("", 1, 8, (Media("image", "x"),)), SampleRequest("", 1, 8, messages=({},))):
            with pytest.raises(InvalidConfig, match="--backend openai-chat"):
                one(server, dialect=COMPLETIONS, request=wrong)
        assert not server.bodies


def test_no_more_are_under_way_than_are_allowed():
    with scripted(ROLE, END) as server:
        ran = ask(server, count=9, load=LoadLevel(concurrency=3))
        assert server.most == 3
    assert all(answer.failure is None for answer in ran.answers)
    assert ran.answers[0].queued < ran.answers[3].queued < ran.answers[8].queued


def test_requests_wait_for_their_moment():
    load = LoadLevel(Arrivals(rate=20.0))
    with scripted(ROLE, END) as server:
        ran = ask(server, count=8, load=load)
    for answer, moment in zip(ran.answers, load.arrivals.moments(8, 0), strict=True):
        assert answer.start >= moment


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_a_run_ends_when_nobody_listens():
    """A hundred requests, two seconds apart: all but the first are not sent."""

    async def run() -> LoadResult:
        target = Target(f"http://127.0.0.1:{free_port()}", CHAT.endpoint, CHAT)
        async with LoadClient(target, CommonFields("m")) as client:
            load = LoadLevel(Arrivals(rate=0.5, burstiness=float("inf")))
            return await asyncio.wait_for(run_load(client, [b"{}"] * 100, load, lambda _: None), 60)

    kinds = [answer.failure.kind for answer in asyncio.run(run()).answers if answer.failure]
    assert kinds == ["no connection", *["not sent"] * 99]


def test_a_server_that_is_not_ready_is_named():
    async def run() -> None:
        target = Target(f"http://127.0.0.1:{free_port()}", CHAT.endpoint, CHAT)
        async with LoadClient(target, CommonFields("m")) as client:
            await wait_until_ready(client, b"{}", "x", 0.1)

    with pytest.raises(NotReady, match=r"did not answer a first request within 0\.1 s .*: no connection"):
        asyncio.run(run())
