"""One engine on the demo model for all tests of evaluation that ask something."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tilewise import LLM


@pytest.fixture(scope="session")
def demo() -> Iterator[LLM]:
    with LLM("demo", max_logprobs=-1) as llm:
        yield llm
