"""A stand-in hub, and an environment in which nothing of the person who runs the tests is used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from tests.tiny import SPECS, write_original
from tests.weights.hub_server import HubServer
from tilewise.weights.hubs import web


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a tiny model in three shards."""
    folder = write_original(tmp_path_factory.mktemp("served"), SPECS["qwen2-tied-28px"], shards=3)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """Stands in for both hubs; caches are below `tmp_path`, and no try waits before the next."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "MODELSCOPE_API_TOKEN", "VLLM_USE_MODELSCOPE"):
        monkeypatch.delenv(name, raising=False)
    server = HubServer()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "huggingface"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(web, "PAUSES", (0.0, 0.0))
    yield server
    server.close()
