"""A server with limits: on tokens that wait, on a request's time, and on the silence of a stream."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from tests.served import Served, question, served, until
from tests.server.live import QUESTION

PATIENCE = 60
ENDLESS = {"messages": [QUESTION], "ignore_eos": True, "max_tokens": 900, "stream": True}


@pytest.fixture(scope="module")
def limited() -> Iterator[Served]:
    flags = ("--max-num-queued-tokens", "100", "--request-timeout", "5", "--sse-keep-alive-interval", "0.2")
    environment = {"VLLM_ENABLE_RESPONSES_API_STORE": "1", "TILEWISE_MAX_STORED_RESPONSES": "1"}
    with served("--max-model-len", "1024", "--stream-interval", "4", *flags, environment=environment) as server:
        yield server


def post(server: Served, path: str, body: dict) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, timeout=PATIENCE)


@pytest.fixture
def hanging(limited: Served) -> Iterator[Served]:
    """The server, whose engine does nothing meanwhile, with a prompt that waits for it."""
    os.kill(limited.engine_pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(post, limited, "/v1/completions", {"prompt": list(range(10, 80)), "max_tokens": 1})
            until(lambda: limited.client.get("/load").json()["server_load"] > 0)
            yield limited
            os.kill(limited.engine_pid, signal.SIGCONT)
            assert waiting.result(PATIENCE).status_code in (200, 504)
    finally:
        os.kill(limited.engine_pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": list(range(10, 60)), "stream": True}),
        ("/v1/completions", {"prompt": [[10] * 20, [11] * 20]}),
        ("/v1/chat/completions", {"messages": question("What is this?", "chinese_question.png"), "stream": True}),
        ("/v1/chat/completions/batch", {"messages": [question("What is this?", "chinese_question.png")]}),
        ("/v1/responses", {"input": "word " * 60, "stream": True, "store": False}),
    ],
)
def test_too_many_tokens_that_wait_are_refused_before_an_answer_begins(hanging: Served, path: str, body: dict):
    before = hanging.metric("vllm:admission_rejections_total", 'reason="queued_tokens"')
    refused = post(hanging, path, body)
    assert refused.status_code == 429, refused.text
    assert int(refused.headers["retry-after"]) >= 1
    assert "they pass the limit of 100: send the request again later" in refused.json()["error"]["message"]
    assert hanging.metric("vllm:admission_rejections_total", 'reason="queued_tokens"') == before + 1


def test_a_stream_that_waits_says_that_it_is_alive(limited: Served):
    """Comments come while the engine is silent, and OpenAI's client, like all that follow the standard, skips them."""
    body = {**ENDLESS, "max_tokens": 40}
    with (
        httpx.Client(timeout=PATIENCE) as client,
        client.stream("POST", f"{limited.url}/v1/chat/completions", json=body) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        os.kill(limited.engine_pid, signal.SIGSTOP)
        try:
            found = itertools.takewhile(lambda line: line != "data: [DONE]", lines)
            assert sum(1 for _ in itertools.islice((line for line in found if line == ": keep-alive"), 3)) == 3
        finally:
            os.kill(limited.engine_pid, signal.SIGCONT)
        rest = list(lines)
    assert "data: [DONE]" in rest
    with openai.OpenAI(base_url=f"{limited.url}/v1", api_key="-") as client:
        stream = iter(client.chat.completions.create(model="demo", messages=[QUESTION], stream=True, max_tokens=8))
        next(stream)
        os.kill(limited.engine_pid, signal.SIGSTOP)
        threading.Timer(0.6, os.kill, (limited.engine_pid, signal.SIGCONT)).start()
        assert list(stream)[-1].choices[0].finish_reason in ("stop", "length")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_chunks_come_every_few_tokens_and_hold_all_text(limited: Served, path: str):
    name, length = {"/v1/chat/completions": ("messages", "max_tokens"), "/v1/completions": ("prompt", "max_tokens"),
                    "/v1/responses": ("input", "max_output_tokens")}[path]  # fmt: skip
    asked = [QUESTION] if name == "messages" else "What is this?"
    body = {name: asked, length: 17, "ignore_eos": True, "temperature": 0}
    whole = post(limited, path, body).json()
    streamed = post(limited, path, {**body, "stream": True}).text
    events = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    if name == "input":
        texts = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
        expected = whole["output"][-1]["content"][0]["text"]
    else:
        choices = [event["choices"][0] for event in events if event["choices"]]
        texts = [choice["text"] if name == "prompt" else choice["delta"].get("content", "") for choice in choices]
        message = whole["choices"][0]
        expected = message["text"] if name == "prompt" else message["message"]["content"]
    assert "".join(texts) == expected
    assert len(list(filter(None, texts))) <= 6, "the first token, every fourth, and the last"


def test_a_client_that_takes_nothing_is_left_at_the_deadline(limited: Served):
    lines = len(limited.lines)
    body = json.dumps({**ENDLESS, "n": 8, "logprobs": True, "top_logprobs": 20}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
    address = urlsplit(limited.url)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((address.hostname, address.port))
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        until(lambda: limited.client.get("/load").json()["server_load"] > 0)
        until(lambda: limited.client.get("/load").json()["server_load"] == 0)
    assert not any("Traceback" in line for line in limited.lines[lines:])


def test_room_for_a_response_is_taken_before_it_is_made(limited: Served):
    """There is room for one; while that is worked on, another is refused at once, and not when it is whole."""
    working = post(limited, "/v1/responses", {"input": "Hi", "background": True, "max_output_tokens": 900,
                                              "ignore_eos": True}).json()  # fmt: skip
    for stream in (False, True):
        refused = post(limited, "/v1/responses", {"input": "Hi", "stream": stream, "max_output_tokens": 2})
        assert refused.status_code == 429, refused.text
        assert "no more can be kept" in refused.json()["error"]["message"]
    assert post(limited, "/v1/responses", {"input": "Hi", "store": False, "max_output_tokens": 2}).status_code == 200
    assert post(limited, f"/v1/responses/{working['id']}/cancel", {}).status_code == 200
    kept = post(limited, "/v1/responses", {"input": "Hi", "max_output_tokens": 2}).json()
    assert limited.client.get(f"/v1/responses/{kept['id']}").json() == kept
