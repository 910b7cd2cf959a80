"""LangChain's OpenAI client against a real server, unchanged: one picture, streaming, structured output."""

from __future__ import annotations

import base64
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict

from tests.served import PICTURES, question

langchain_openai = pytest.importorskip("langchain_openai", reason="make test-clients installs it")
pytestmark = pytest.mark.clients


@pytest.fixture
def model(demo_url):
    return langchain_openai.ChatOpenAI(model="demo", base_url=f"{demo_url}/v1", api_key="none", temperature=0)


def test_a_picture(model):
    answer = model.invoke(question("What is the word?", "reading_text.png"))
    assert answer.content == "cat"
    assert answer.usage_metadata["output_tokens"] == 2
    assert answer.response_metadata["model_name"] == "demo"


def test_its_own_form_of_a_picture(model):
    """LangChain's content blocks, which its client turns into OpenAI's."""
    data = base64.b64encode((PICTURES / "counting.png").read_bytes()).decode()
    block = {"type": "image", "base64": data, "mime_type": "image/png"}
    text = {"type": "text", "text": "How many diamonds are in the picture?"}
    assert model.invoke([{"role": "user", "content": [block, text]}]).content == "6"


def test_streaming(model):
    chunks = list(model.stream(question("Which shape is on the left?", "color_and_shape.png")))
    texts = [chunk.content for chunk in chunks if chunk.content]
    assert texts == ["yellow", " circle"]
    assert chunks[-1].response_metadata.get("finish_reason", "stop") == "stop"


class Reading(BaseModel):
    """What stands in a picture."""

    word: Literal["dog", "cat", "horse"]


def test_structured_output(model):
    reader = model.with_structured_output(Reading, method="json_schema")
    assert reader.invoke(question("What is the word?", "reading_text.png")) == Reading(word="cat")


class Place(BaseModel):
    """Where something is."""

    model_config = ConfigDict(extra="forbid")  # else the schema allows more, and the demo model would never end

    place: Literal["left", "right", "top", "bottom"]


def test_structured_output_by_a_call(model):
    """The demo model was not trained on tools: the place may be any, the form may not."""
    reader = model.with_structured_output(Place, method="function_calling")
    assert isinstance(reader.invoke(question("Where is the orange cross?", "follow_up.png")), Place)
