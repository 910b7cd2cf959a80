"""Keys, tokens and passwords: in no log, answer, metric or command line, however they came and whatever goes wrong."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.called import called
from tests.processes import children, command_line
from tests.served import Served, served, until
from tilewise.weights.hubs import web

MARK = "hush"
"""A word that all secrets have, and that nothing else says."""
KEY, ANOTHER = f"{MARK}-flag", f"{MARK}-file"
VARIABLES = {
    "VLLM_API_KEY": f"{MARK}-variable",
    "OPENAI_API_KEY": f"{MARK}-client",
    "HF_TOKEN": f"hf_{MARK}",
    "HUGGING_FACE_HUB_TOKEN": f"hf_{MARK}_older",
    "MODELSCOPE_API_TOKEN": f"ms_{MARK}",
    "HTTP_PROXY": f"http://user:{MARK}@127.0.0.1:9",
    "HTTPS_PROXY": f"http://user:{MARK}@127.0.0.1:9",
    "NO_PROXY": "localhost",
    "OTEL_EXPORTER_OTLP_HEADERS": f"authorization={MARK}",
    "AWS_SECRET_ACCESS_KEY": MARK,
    "RAY_AUTH_TOKEN": MARK,
    "VLLM_LOGGING_LEVEL": "DEBUG",
    "VLLM_SERVER_DEV_MODE": "1",
}
FLAGS = (
    *("--otlp-traces-endpoint", f"http://user:{MARK}@127.0.0.1:9/v1/traces"),
    *("--uvicorn-log-level", "debug", "--enable-log-requests", "--max-model-len", "512"),
)


@pytest.fixture(scope="module", params=["flag", "file"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, str]]:
    """A server whose key comes in one of the ways, and all other secrets in theirs; and that key.

    A key in a variable is kept from what is logged as these are (`tests/cli/flags/test_settings.py`).
    """
    file = tmp_path_factory.mktemp("flags") / "server.yml"
    if request.param == "flag":
        file.write_text(f"hf-token: hf_{MARK}_file\n")
        flags, key = ("--api-key", KEY), KEY
    else:
        file.write_text(f"api-key: {ANOTHER}\n")
        flags, key = ("--hf-token", f"hf_{MARK}_flag"), ANOTHER
    with served(*FLAGS, *flags, "--config", str(file), environment=VARIABLES) as started:
        yield started, key


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def ask(server: Served, key: str, url: str | None = None, **fields: object) -> httpx.Response:
    part = [{"type": "image_url", "image_url": {"url": url}}] if url else []
    body = {"messages": [{"role": "user", "content": [*part, {"type": "text", "text": "What is this?"}]}], **fields}
    return server.client.post("/v1/chat/completions", json={"max_tokens": 2, **body}, headers=bearer(key))


def test_secrets_are_told_nobody(server: tuple[Served, str]) -> None:
    live, key = server
    assert ask(live, key).status_code == 200, "or nothing of what follows says anything"
    refused = [
        ask(live, f"{key}x"),
        ask(live, key, "http://example.com/a.png"),
        ask(live, key, "https://example.com/a.png"),
        ask(live, key, "data:image/png;base64,AAAA"),
        ask(live, key, temperature=-1),
        live.client.get(f"/nothing?key={key}", headers=bearer(key)),
        live.client.get(f"/v1/models?key={key}"),
    ]
    assert {answer.status_code for answer in refused} == {400, 401, 404}
    routes = ("/v1/models", "/metrics", "/server_info", "/server_info?config_format=json", "/load", "/openapi.json")
    told = [live.client.get(route, headers=bearer(key)) for route in routes]
    assert {answer.status_code for answer in told} == {200}
    for answer in (*refused, *told):
        assert MARK not in answer.text
        assert MARK not in str(answer.headers)
    assert not [line for pid in children(live.process.pid) if MARK in (line := command_line(pid))]
    os.kill(live.engine_pid, signal.SIGSEGV)
    assert live.logs("was ended by signal 11")
    until(lambda: ask(live, key).status_code == 200)
    assert "non-default args" in live.log, "the line that has the flags"
    assert not [line for line in live.lines if MARK in line]


FAILING = {
    "a port that is none": ("serve", "--port", "99999"),
    "a mirror that is away": ("serve", "some/model"),
    "a folder that is none": ("serve", "/nothing/here"),
    "an option that is none": ("serve", "--api-keyy", "a"),
    "a collector that is none": ("serve", "--otlp-traces-endpoint", f"ftp://user:{MARK}@host"),
    "a machine": ("doctor",),
    "a model": ("inspect", "demo"),
    "a model elsewhere": ("inspect", "some/model"),
    "flags": ("serve", "--help"),
}


@pytest.mark.parametrize("name", FAILING)
def test_secrets_are_not_told_by_what_fails_or_reports(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "PAUSES", (0.0,))
    verb, *words = FAILING[name]
    mirror = {"HF_ENDPOINT": f"http://user:{MARK}@127.0.0.1:9", "HF_HUB_CACHE": str(tmp_path)}
    secret = ("--api-key", KEY, "--hf-token", f"hf_{MARK}") if verb == "serve" else ()
    done = called(verb, *words, *secret, **VARIABLES, **mirror)
    assert done.stdout + done.stderr
    assert MARK not in done.stdout + done.stderr
