"""Clients that leave: in the middle of an answer, before it, and before they have said all."""

from __future__ import annotations

import json
import socket
from urllib.parse import urlsplit

import httpx

from tests.served import Served, until
from tests.server.live import QUESTION

ANSWERS = 8
LONG = {"messages": [QUESTION], "ignore_eos": True, "max_tokens": 900, "n": ANSWERS}


def aborted(live: Served) -> float:
    return live.metric("vllm:request_success_total", 'finished_reason="abort"')


def idle(live: Served) -> bool:
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    return all(live.metric(name) == 0 for name in names)


def sent(live: Served, *parts: bytes) -> socket.socket:
    address = urlsplit(live.url)
    connection = socket.create_connection((address.hostname, address.port), 30)
    for part in parts:
        connection.sendall(part)
    return connection


def head(length: int) -> bytes:
    """Of a chat's request."""
    headers = f"Host: a\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    return b"POST /v1/chat/completions HTTP/1.1\r\n" + headers.encode()


def test_in_the_middle_of_a_stream(live: Served):
    before = aborted(live)
    body = {**LONG, "stream": True}
    with (
        httpx.Client(timeout=60) as client,
        client.stream("POST", f"{live.url}/v1/chat/completions", json=body) as answer,
    ):
        lines = answer.iter_lines()  # held, since its end would be the stream's
        next(lines)
        until(lambda: live.metric("vllm:num_requests_running") == ANSWERS)
    until(lambda: idle(live) and aborted(live) == before + ANSWERS)


def test_while_waiting_for_a_whole_answer(live: Served):
    before = aborted(live)
    body = json.dumps(LONG).encode()
    with sent(live, head(len(body)), body):
        until(lambda: live.metric("vllm:num_requests_running") == ANSWERS)
    until(lambda: idle(live) and aborted(live) == before + ANSWERS)


def test_in_the_middle_of_several_prompts(live: Served):
    before = aborted(live)
    body = json.dumps({"prompt": ["a"] * ANSWERS, "ignore_eos": True, "max_tokens": 900, "stream": True}).encode()
    with sent(live, head(len(body)).replace(b"/chat", b""), body) as connection:
        connection.recv(100)
        until(lambda: live.metric("vllm:num_requests_running") == ANSWERS)
    until(lambda: idle(live) and aborted(live) == before + ANSWERS)


def test_in_the_middle_of_an_upload(live: Served):
    """Nothing was asked yet, so nothing is aborted, and nobody's error goes to the log."""
    before, lines = aborted(live), len(live.lines)
    with sent(live, head(1000), b'{"messages": ['):
        until(lambda: live.client.get("/load").json()["server_load"] == 1)
    until(lambda: live.client.get("/load").json()["server_load"] == 0)
    assert aborted(live) == before
    assert not any("Traceback" in line or "ERROR" in line for line in live.lines[lines:])


def test_with_a_reset(live: Served):
    body = json.dumps({**LONG, "stream": True}).encode()
    with sent(live, head(len(body)), body) as connection:
        connection.recv(10)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closing resets
    until(lambda: idle(live))


def test_a_reader_that_stops_reading_holds_up_nobody(live: Served):
    body = json.dumps({**LONG, "stream": True, "logprobs": True, "top_logprobs": 20}).encode()
    with sent(live, head(len(body)), body):
        answer = live.client.post("/v1/chat/completions", json={**LONG, "max_tokens": 2})
        assert answer.status_code == 200
    until(lambda: idle(live))
