"""One thread for the whole suite: models this small are all overhead on several, most of all on a busy machine."""

from __future__ import annotations

import os

# Before torch and numpy are imported, and for the processes that tests start as well.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import gc
import logging
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from tests.served import served

torch.set_num_threads(1)

# No test is about the time it takes, which is not its own on a busy machine.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


def pytest_collection_finish() -> None:
    """Spare the garbage collector what collection made, thousands of tests and all modules, which stays to the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def demo_url() -> Iterator[str]:
    """Of a server on the demo model, with the flags that the examples ask for; one for all who only ask questions."""
    flags = ("--allowed-local-media-path", ".", "--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    with served(*flags) as server:
        yield server.url


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """Leave no test the log of another, which called the command line in this process."""
    logger = logging.getLogger("tilewise")
    level, handlers, propagate = logger.level, list(logger.handlers), logger.propagate
    yield
    logger.setLevel(level)
    logger.handlers[:], logger.propagate = handlers, propagate
