"""What every client's program needs. It is run by the client's own interpreter, so nothing of Tilewise is imported."""

from __future__ import annotations

import base64
import os
import socket
from pathlib import Path
from typing import Any

import pytest

PICTURES = Path(__file__).parents[3] / "src" / "tilewise" / "demo" / "pictures"


@pytest.fixture(autouse=True)
def loopback_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client may count tokens, look up prices or report runs elsewhere: not in a test."""
    connect = socket.socket.connect

    def checked(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1"), f"the client went to {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", checked)


@pytest.fixture(scope="session")
def url() -> str:
    """Of a server on the demo model, as clients want it: with /v1."""
    return os.environ["TILEWISE_URL"] + "/v1"


@pytest.fixture(scope="session")
def sign() -> Path:
    """A picture of the word "cat" in red, which the demo model reads: asked "What is the word?" it answers `cat`."""
    return PICTURES / "reading_text.png"


@pytest.fixture(scope="session")
def shapes() -> Path:
    """Asked "Which shape is on the left?" the demo model answers `yellow circle`."""
    return PICTURES / "color_and_shape.png"


@pytest.fixture(scope="session")
def data_url(sign: Path) -> str:
    return data_url_of(sign)


def data_url_of(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


@pytest.fixture(scope="session")
def shapes_url(shapes: Path) -> str:
    return data_url_of(shapes)
