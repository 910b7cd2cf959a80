"""One real server with the demo model for all tests of this folder that talk to it over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.served import Served, served

ROOT = "/api"
KEYS = ("first-key", "second-key")
MAX_BODY = 2**20
QUESTION = {"role": "user", "content": "What is this?"}


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Served]:
    flags = ("--max-body-mb", "1", "--enable-request-id-headers", "--allowed-origins", '["https://chat.example"]')
    with served("--max-model-len", "1024", *flags) as server:
        yield server
        assert server.stop() == 0


@pytest.fixture(scope="session")
def locked_server() -> Iterator[Served]:
    """The same with keys, behind a proxy that shows it under ROOT."""
    with served("--max-model-len", "512", "--root-path", ROOT, "--api-key", *KEYS) as server:
        yield server
        assert server.stop() == 0


@pytest.fixture(scope="module")
def sound_server(shared_server: Served) -> Iterator[Served]:
    """The server, whose first engine still answers when the tests of a file have ended."""
    yield shared_server
    assert chat(shared_server).status_code == 200
    assert shared_server.metric("tilewise:engine_restarts_total") == 0


@pytest.fixture
def live(sound_server: Served) -> Iterator[Served]:
    """The server, which is still well when the test has ended."""
    yield sound_server
    assert sound_server.client.get("/health").status_code == 200


@pytest.fixture
def locked(locked_server: Served) -> Iterator[Served]:
    yield locked_server
    answer = locked_server.client.get("/v1/models", headers={"Authorization": f"Bearer {KEYS[0]}"})
    assert answer.status_code == 200


def chat(live: Served, **fields: Any) -> httpx.Response:
    body = {"messages": [QUESTION], "max_tokens": 2, **fields}
    return live.client.post("/v1/chat/completions", json=body)


def ask_about(live: Served, **part: Any) -> httpx.Response:
    """A message with a part that is not text."""
    return chat(live, messages=[{"role": "user", "content": [part, {"type": "text", "text": "What is this?"}]}])


def about_picture(live: Served, url: str) -> httpx.Response:
    return ask_about(live, type="image_url", image_url={"url": url})


def about_video(live: Served, url: str) -> httpx.Response:
    return ask_about(live, type="video_url", video_url={"url": url})


def error_of(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The error object, whose form is the same for all errors."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == status
    assert " at 0x" not in error["message"]
    return error
