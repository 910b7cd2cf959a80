"""LiteLLM against a real server, unchanged, as the provider `openai` with an address: what its proxy does, too."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from tests.served import question

# What its own modules warn of is theirs.
pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]
READING = question("What is the word?", "reading_text.png")


@pytest.fixture(scope="module", autouse=True)
def leftovers() -> Iterator[None]:
    """It leaves an event loop open, which is told when that is collected: here, rather than in a later test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


@pytest.fixture
def litellm() -> Any:
    """Imported within the test, whose environment keeps it from looking up prices."""
    return pytest.importorskip("litellm", reason="make test-clients installs it")


@pytest.fixture
def server(demo_url: str) -> dict[str, Any]:
    return {"model": "openai/demo", "api_base": f"{demo_url}/v1", "api_key": "none", "temperature": 0}


def test_a_picture(litellm, server):
    answer = litellm.completion(messages=READING, **server)
    assert answer.choices[0].message.content == "cat"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == 2


def test_streaming(litellm, server):
    asked = question("Which shape is on the left?", "color_and_shape.png")
    stream = litellm.completion(messages=asked, stream=True, stream_options={"include_usage": True}, **server)
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "yellow circle"
    assert chunks[-1].usage.completion_tokens == 3


def test_many_at_once(litellm, server):
    async def ask() -> list[Any]:
        return await asyncio.gather(*(litellm.acompletion(messages=READING, **server) for _ in range(4)))

    assert [answer.choices[0].message.content for answer in asyncio.run(ask())] == ["cat"] * 4


class Reading(BaseModel):
    """What stands in a picture."""

    word: Literal["dog", "cat", "horse"]


def test_structured_output(litellm, server):
    answer = litellm.completion(messages=READING, response_format=Reading, **server)
    assert Reading.model_validate_json(answer.choices[0].message.content) == Reading(word="cat")


def test_a_text_completion_with_a_field_that_openai_does_not_have(litellm, server):
    server |= {"model": "text-completion-openai/demo", "extra_body": {"ignore_eos": True}}
    answer = litellm.text_completion(prompt="The circle is", max_tokens=3, **server)
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (3, "length")


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"model": "openai/nobody"}, "NotFoundError", "does not exist. This server has demo"),
        ({"top_p": 2.0}, "BadRequestError", "top_p"),
        ({"max_tokens": 99_999}, "ContextWindowExceededError", "maximum context length"),
    ],
)
def test_an_error_is_of_its_kind(litellm, server, fields, error, says):
    with pytest.raises(getattr(litellm, error), match=says):
        litellm.completion(messages=READING, **{**server, **fields})
