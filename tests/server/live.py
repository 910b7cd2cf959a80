"""One real server with the demo model for all tests of this folder that talk to it over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.server.process import Served, served

KEYS = ("first-key", "second-key")
MAX_BODY = 2**20
QUESTION = {"role": "user", "content": "What is this?"}


@dataclass(frozen=True)
class Live:
    """A running server, and a client that keeps its connections."""

    server: Served
    client: httpx.Client

    @property
    def url(self) -> str:
        return self.server.url

    def metric(self, name: str, label: str = "") -> float:
        """The sum over all labels, or over those with `label` among them."""
        lines = self.client.get("/metrics").text.splitlines()
        named = [line for line in lines if line.startswith((f"{name} ", f"{name}{{")) and label in line]
        return sum(float(line.rpartition(" ")[2]) for line in named)


@contextmanager
def running(*flags: str) -> Iterator[Live]:
    """Told to end, it does so in order."""
    with served(*flags) as server:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            yield Live(server, client)
        assert server.stop() == 0


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Live]:
    flags = ("--max-body-mb", "1", "--enable-request-id-headers", "--allowed-origins", '["https://chat.example"]')
    with running("--max-model-len", "1024", *flags) as live:
        yield live


@pytest.fixture(scope="session")
def locked_server() -> Iterator[Live]:
    """The same with keys."""
    with running("--max-model-len", "512", "--api-key", *KEYS) as live:
        yield live


@pytest.fixture
def live(shared_server: Live) -> Iterator[Live]:
    """The server, which still answers when the test has ended."""
    yield shared_server
    assert chat(shared_server).status_code == 200
    assert shared_server.metric("tilewise:engine_restarts_total") == 0


@pytest.fixture
def locked(locked_server: Live) -> Iterator[Live]:
    yield locked_server
    answer = locked_server.client.get("/v1/models", headers={"Authorization": f"Bearer {KEYS[0]}"})
    assert answer.status_code == 200


def chat(live: Live, **fields: Any) -> httpx.Response:
    body = {"messages": [QUESTION], "max_tokens": 2, **fields}
    return live.client.post("/v1/chat/completions", json=body)


def ask_about(live: Live, **part: Any) -> httpx.Response:
    """A message with a part that is not text."""
    return chat(live, messages=[{"role": "user", "content": [part, {"type": "text", "text": "What is this?"}]}])


def about_picture(live: Live, url: str) -> httpx.Response:
    return ask_about(live, type="image_url", image_url={"url": url})


def about_video(live: Live, url: str) -> httpx.Response:
    return ask_about(live, type="video_url", video_url={"url": url})


def error_of(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The error object, whose form is the same for all errors."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == status
    assert " at 0x" not in error["message"]
    return error
