"""ChatServer against servers that answer what they are told to, over real connections."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tilewise.chat_server import ChatServer, Delta, ServerProblem
from tilewise.errors import InvalidConfig


@contextmanager
def answering(status: int, body: bytes, promised: int | None = None) -> Iterator[str]:
    """A server with one answer to everything, of which it may promise more bytes than it sends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", str(promised or len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.shutdown()


def events(*data: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(item).encode() + b"\n\n" for item in data) + b"data: [DONE]\n\n"


def chunk(**delta: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta}]}


def ask(url: str) -> list[Delta]:
    with ChatServer(url, None) as server:
        return list(server.answer({"messages": []}))


def test_reasoning_has_two_names():
    body = events(chunk(reasoning="a", reasoning_content="a"), chunk(reasoning_content="b"), chunk(content="c"))
    with answering(200, body) as url:
        assert ask(url) == [Delta("", "a"), Delta("", "b"), Delta("c")]


def test_usage_comes_without_choices():
    with answering(200, events({"choices": [], "usage": {"prompt_tokens": 3}})) as url:
        assert ask(url) == [Delta(usage={"prompt_tokens": 3})]


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, b'{"error": {"message": "Too\\nlong.", "code": 400}}', "400 Too long."),
        (404, b'{"object": "error", "message": "No such model"}', "404 No such model"),
        (422, b'{"detail": "bad"}', "422 bad"),
        (401, b"", "401 Unauthorized. Give the key with --api-key, or in VLLM_API_KEY."),
        (502, b"<html>Bad\nGateway</html>", "502 <html>Bad Gateway</html>"),
        (200, events({"error": {"message": "The engine ended."}}), "The engine ended."),
        (200, b"data: nonsense\n\n", "no part of an answer: 'nonsense'"),
    ],
)
def test_refusals_are_one_line(status, body, message):
    with answering(status, body) as url, pytest.raises(ServerProblem) as caught:
        ask(url)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_connection_that_breaks_is_said():
    with (
        answering(200, events(chunk(content="a"))[: -len(b"data: [DONE]\n\n")], promised=10**6) as url,
        ChatServer(url, None) as server,
    ):
        deltas = server.answer({"messages": []})
        assert next(deltas).text == "a"
        with pytest.raises(ServerProblem, match="in the middle of the answer"):
            next(deltas)


def test_the_first_model_is_taken():
    with answering(200, b'{"data": [{"id": "eye"}, {"id": "other"}]}') as url, ChatServer(url, None) as server:
        assert server.first_model() == "eye"
    with (
        answering(200, b'{"data": []}') as url,
        ChatServer(url, None) as server,
        pytest.raises(ServerProblem, match="names no model: is one loaded there"),
    ):
        server.first_model()


def test_a_url_without_v1_is_explained():
    with (
        answering(404, b"") as url,
        ChatServer(url, None) as server,
        pytest.raises(ServerProblem, match="mostly ends with /v1"),
    ):
        server.first_model()


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://a/v1", "http:///v1"])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(InvalidConfig, match="--url must be"):
        ChatServer(url, None)
