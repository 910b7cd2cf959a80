"""A state folder of the test's own, and small servers in it that end with the test."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from tilewise.cli.services import START, StartOrder, start
from tilewise.services import ServiceFolder

SMALL_SERVER = [sys.executable, str(Path(__file__).parent / "small_server.py")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TILEWISE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    folder = ServiceFolder.of(os.environ)
    yield folder
    for service in folder.all():
        if service.alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(service.pid, signal.SIGKILL)


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def start_small(folder, port):
    """`tilewise start` with a small server in place of ours."""

    def started(*words: str, manners: tuple[str, ...] = ()) -> int:
        address = ["--host", "127.0.0.1", "--port", str(port)]
        return start(StartOrder.of(START.read([*words, *address])), [*SMALL_SERVER, *manners])

    return started
