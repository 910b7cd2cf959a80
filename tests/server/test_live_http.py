"""Methods, headers, sizes, connections: HTTP itself, on a real server."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.served import Served
from tests.server.live import MAX_BODY, QUESTION, chat, error_of

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
ORIGIN = "https://chat.example"


def connected(live: Served) -> socket.socket:
    address = urlsplit(live.url)
    return socket.create_connection((address.hostname, address.port), 30)


def said(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def test_hundreds_who_come_while_the_server_is_busy_wait_and_are_answered(live):
    """They wait in the kernel, and none is turned away."""
    ask = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    os.kill(live.process.pid, signal.SIGSTOP)
    try:
        waiting = [connected(live) for _ in range(400)]
        for connection in waiting:
            connection.sendall(ask)
    finally:
        os.kill(live.process.pid, signal.SIGCONT)
    assert {said(connection)[:12] for connection in waiting} == {b"HTTP/1.1 200"}
    for connection in waiting:
        connection.close()


def chunks(count: int) -> Iterator[bytes]:
    """Of 64 KiB each; their number is not declared."""
    for _ in range(count):
        yield b" " * 2**16


def test_a_body_that_says_it_is_too_large(live: Served):
    answer = live.client.post(CHAT, content=b" " * (MAX_BODY + 1), headers=JSON)
    error = error_of(answer, 413)
    assert f"has {MAX_BODY + 1} bytes, the limit is {MAX_BODY}" in error["message"]
    assert answer.headers["Connection"] == "close"


def test_a_body_that_turns_out_to_be_too_large(live: Served):
    """The client is still sending when the answer comes, and gets to read it."""
    answer = live.client.post(CHAT, content=chunks(28), headers=JSON)
    error = error_of(answer, 413)
    assert f"more than {MAX_BODY} bytes" in error["message"]
    assert answer.headers["Connection"] == "close"


def test_a_body_without_an_end_is_not_read_for_ever(live: Served):
    with connected(live) as connection:
        connection.sendall(b"POST /tokenize HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n")
        connection.sendall(b"Content-Type: application/json\r\n\r\n")
        with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
            send_chunks(connection, 64 * MAX_BODY)


def send_chunks(connection: socket.socket, size: int) -> None:
    for _ in range(size // 2**16):
        connection.sendall(b"10000\r\n" + b" " * 2**16 + b"\r\n")


def test_the_largest_body_that_is_taken(live: Served):
    body = b'{"prompt": "a"}'
    answer = live.client.post("/tokenize", content=body + b" " * (MAX_BODY - len(body)), headers=JSON)
    assert answer.json()["count"] == 1


@pytest.mark.parametrize("declared", [b"-1", b"ten", b"1e3", b"99999999999999999999"])
def test_a_length_that_is_no_length(live: Served, declared: bytes):
    with connected(live) as connection:
        connection.sendall(b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: " + declared + b"\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        assert said(connection).split(b"\r\n")[0].split()[1] in (b"400", b"413")


def test_two_lengths_are_refused(live: Served):
    """Which of them counts is what a proxy in front and the server could disagree about."""
    with connected(live) as connection:
        connection.sendall(
            b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
        )
        connection.shutdown(socket.SHUT_WR)
        answer = said(connection)
    assert b"vllm:" not in answer or answer.startswith(b"HTTP/1.1 400")


def test_too_many_headers(live: Served):
    error = error_of(live.client.get("/health", headers={f"x-{i}": "a" for i in range(300)}), 431)
    assert "the limits are 256 and 65536" in error["message"]


def test_too_large_headers(live: Served):
    assert "send fewer" in error_of(live.client.get("/health", headers={"x": "a" * 70_000}), 431)["message"]


def test_headers_beyond_what_is_held_in_memory(live: Served):
    with connected(live) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\nx: ")
        try:
            for _ in range(80):
                connection.sendall(b"a" * 2**16)
            answer = said(connection)
        except OSError:
            return  # closed while it was sent
    assert answer.startswith(b"HTTP/1.1 400")


def test_what_is_not_http(live: Served):
    with connected(live) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        assert said(connection).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/embeddings", "//health", "/docs/../../etc/passwd", "/docs/x"])
def test_an_unknown_path(live: Served, path: str):
    assert error_of(live.client.get(path), 404)["type"] == "NotFoundError"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, {"POST"}),
        ("PUT", "/tokenize", {"POST"}),
        ("DELETE", "/health", {"GET"}),
        ("TRACE", "/health", {"GET"}),
        ("OPTIONS", CHAT, {"POST"}),
        ("OPTIONS", "/ping", {"GET", "POST"}),
    ],
)
def test_a_method_that_a_path_does_not_have(live: Served, method: str, path: str, allowed: set[str]):
    answer = live.client.request(method, path)
    assert error_of(answer, 405)["type"] == "Method Not Allowed"
    assert set(answer.headers["Allow"].split(", ")) == allowed


@pytest.mark.parametrize("path", ["/health", "/ping", "/v1/models", "/version", "/metrics"])
def test_head_is_get_without_the_body(live: Served, path: str):
    whole, head = live.client.get(path), live.client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers.get("Content-Type") == whole.headers.get("Content-Type")
    assert live.client.head(CHAT).status_code == 405


def test_a_page_of_an_allowed_origin_may_ask(live: Served):
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    answer = live.client.options(CHAT, headers=asked)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "authorization" in answer.headers["Access-Control-Allow-Headers"]
    answer = live.client.get("/v1/models", headers={"Origin": ORIGIN})
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    shown = answer.headers["Access-Control-Expose-Headers"].lower().split(", ")
    assert shown == ["x-tilewise-ignored", "x-request-id", "retry-after"]


def test_a_page_of_another_origin_may_not(live: Served):
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = live.client.options(CHAT, headers=asked)
    assert answer.status_code == 400
    assert "Access-Control-Allow-Origin" not in answer.headers
    plain = live.client.get("/v1/models", headers={"Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in plain.headers


@pytest.mark.parametrize("given", ["mine-1", "team/7=a+b@c", "{1}"])
def test_a_request_id_comes_back(live: Served, given: str):
    body = {"messages": [QUESTION], "max_tokens": 1}
    answer = live.client.post(CHAT, json=body, headers={"X-Request-Id": given})
    assert answer.headers["X-Request-Id"] == given
    assert answer.json()["id"] == f"chatcmpl-{given}"


def test_a_request_without_an_id_gets_one(live: Served):
    first, second = (live.client.get("/health").headers["X-Request-Id"] for _ in range(2))
    assert len(first) == 32
    assert first != second


@pytest.mark.parametrize("given", ["a b", "a\tb", "x" * 129, '"><script>'])
def test_a_request_id_that_could_do_harm_is_not_repeated(live: Served, given: str):
    answer = live.client.get("/health", headers={"X-Request-Id": given})
    assert answer.headers["X-Request-Id"] != given
    answer = live.client.post(CHAT, json={"messages": [QUESTION], "max_tokens": 1}, headers={"X-Request-Id": given})
    assert answer.headers["X-Tilewise-Ignored"] == "X-Request-Id"
    assert answer.json()["id"] == f"chatcmpl-{answer.headers['X-Request-Id']}"


@pytest.mark.parametrize("named", [{}, {"request_id": "of-the-body"}])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "asked"),
    [
        (CHAT, {"messages": [QUESTION]}),
        ("/v1/completions", {"prompt": "Hi"}),
        ("/v1/responses", {"input": "Hi"}),
        ("/v1/messages", {"messages": [QUESTION], "max_tokens": 1}),
    ],
)
def test_the_id_of_the_header_is_that_of_the_answer(live: Served, path: str, asked: dict, stream: bool, named: dict):
    """Whoever complains of an answer names it by either, and the log has the same."""
    if path == "/v1/messages" and named:
        pytest.skip("its bodies have no request_id")
    answer = live.client.post(path, json={**asked, **named, "stream": stream})
    assert answer.status_code == 200
    name = answer.headers["X-Request-Id"]
    assert name == named.get("request_id", name)
    assert re.search(rf"(chatcmpl-|cmpl-|resp_|msg_){re.escape(name)}\b", answer.text)


def test_one_connection_serves_many_requests(live: Served):
    """Errors among them: an error is no reason to close it."""
    with connected(live) as connection:
        for line, status in ((b"GET /health", b"200"), (b"GET /nothing", b"404"), (b"HEAD /health", b"200")) * 3:
            connection.sendall(line + b" HTTP/1.1\r\nHost: a\r\n\r\n")
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(1)
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            while length > 0 and not line.startswith(b"HEAD"):
                length -= len(connection.recv(length))
            assert head.split()[1] == status


def test_a_client_may_ask_whether_to_send(live: Served):
    """`Expect: 100-continue`: a body that is too large is refused before it is sent."""
    head = b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
    with connected(live) as connection:
        connection.sendall(head + b"Content-Length: 15\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(b'{"prompt": "a"}')
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    with connected(live) as connection:
        connection.sendall(head + b"Content-Length: 99999999\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_page_that_shows_the_api_asks_nobody_else(live: Served):
    """All that the pages load comes from the server itself, and the browser is told to refuse the rest."""
    for page in ("docs", "redoc"):
        answer = live.client.get(f"/{page}")
        assert answer.headers["Content-Type"].startswith("text/html")
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        loaded = [
            part.split('"')[0] for key in ('src="', 'href="', 'spec-url="') for part in answer.text.split(key)[1:]
        ]
        assert len(loaded) >= 3
        for url in loaded:
            assert "//" not in url
            assert live.client.get(f"/{url}").status_code == 200
    assert chat(live).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["chat", "text"])
def test_named_tokens_are_reported_in_place_of_the_likeliest(live: Served, kind: str, stream: bool):
    """What is reported are the tokens that were named and the one that was chosen, as in vLLM."""
    named = {"logprob_token_ids": [70, 71], "allowed_token_ids": [65], "return_tokens_as_token_ids": True}
    path, asked = {
        "chat": (CHAT, {"messages": [QUESTION], "logprobs": True, "top_logprobs": 5}),
        "text": ("/v1/completions", {"prompt": "a", "logprobs": 5}),
    }[kind]
    answer = live.client.post(path, json={**asked, **named, "max_tokens": 1, "stream": stream})
    assert answer.status_code == 200, answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    bodies = [json.loads(line) for line in lines] if stream else [answer.json()]
    scores = [choice["logprobs"] for body in bodies for choice in body["choices"] if choice["logprobs"]]
    if kind == "chat":
        (entry,) = [entry for score in scores for entry in score["content"]]
        reported = [top["token"] for top in entry["top_logprobs"]]
    else:
        (top,) = [top for score in scores for top in score["top_logprobs"]]
        reported = list(top)
    assert sorted(reported) == ["token_id:65", "token_id:70", "token_id:71"]
