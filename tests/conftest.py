"""One thread for the whole suite: models this small are all overhead on several, most of all on a busy machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.demo_server import demo_server

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def demo_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server on the demo model, with the flags that the examples ask for; one for all who only ask questions."""
    log = tmp_path_factory.mktemp("server") / "log"
    flags = ("--allowed-local-media-path", ".", "--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    with demo_server(log, *flags) as url:
        yield url
