"""LangChain: several system messages, pictures in its own and OpenAI's form, tools, streaming, structured output."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Literal

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field


@pytest.fixture
def model(url):
    return ChatOpenAI(model="demo", base_url=url, api_key="none", temperature=0, stream_usage=True)


@pytest.fixture
def picture(data_url):
    return {"type": "image_url", "image_url": {"url": data_url}}


@pytest.fixture
def asked(picture):
    return HumanMessage([picture, {"type": "text", "text": "What is the word?"}])


def test_a_picture(model, asked):
    answer = model.invoke([asked])
    assert answer.content == "cat"
    assert answer.usage_metadata["output_tokens"] == 2
    assert answer.response_metadata["model_name"] == "demo"


def test_its_own_form_of_a_picture(model, sign):
    block = {"type": "image", "base64": base64.b64encode(sign.read_bytes()).decode(), "mime_type": "image/png"}
    assert model.invoke([HumanMessage([block, {"type": "text", "text": "What is the word?"}])]).content == "cat"


def test_streaming(model, shapes_url):
    picture = {"type": "image_url", "image_url": {"url": shapes_url}}
    chunks = list(model.stream([HumanMessage([picture, {"type": "text", "text": "Which shape is on the left?"}])]))
    assert [chunk.content for chunk in chunks if chunk.content] == ["yellow", " circle"]
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) == 3
    assert "stop" in [chunk.response_metadata.get("finish_reason") for chunk in chunks]


def test_many_at_once(model, asked):
    answers = asyncio.run(model.abatch([[asked]] * 4))
    assert [answer.content for answer in answers] == ["cat"] * 4


def test_two_system_messages(model, asked):
    one = model.invoke([SystemMessage("You read signs."), asked])
    two = model.invoke([SystemMessage("You read signs."), SystemMessage("You say one word."), asked])
    assert one.content == two.content == "cat"
    assert two.usage_metadata["input_tokens"] > one.usage_metadata["input_tokens"]


def test_a_system_message_from_a_template_behind_the_history(model, asked):
    history = ("placeholder", "{history}")
    question = ("human", "And what color is the word?")
    given = {"history": [asked, AIMessage("cat")]}
    plain = (ChatPromptTemplate.from_messages([history, question]) | model).invoke(given)
    steered = ChatPromptTemplate.from_messages([history, ("system", "You say one word."), question])
    answer = (steered | model).invoke(given)
    assert plain.content == "red"
    assert answer.usage_metadata["input_tokens"] > plain.usage_metadata["input_tokens"]


@pytest.mark.parametrize("last", [[], [HumanMessage("What is the word?")]], ids=["last", "followed"])
def test_a_picture_in_a_tool_message(model, picture, last):
    call = AIMessage("", tool_calls=[{"name": "camera", "args": {}, "id": "call_1"}])
    result = ToolMessage([picture], tool_call_id="call_1")
    answer = model.invoke([HumanMessage("What is the word?"), call, result, *last])
    assert answer.response_metadata["token_usage"]["prompt_tokens_details"]["image_tokens"] == 16


class Reading(BaseModel):
    """What stands in a picture."""

    word: Literal["dog", "cat", "horse"]


class Sign(BaseModel):
    """A sign, and what is known of it."""

    reading: Reading
    letters: Annotated[set[Literal["a", "c", "t"]], Field(max_length=3)]
    language: Literal["en", "zh"] | None = None


@pytest.mark.parametrize("strict", [None, False, True])
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("schema", [Reading, Sign])
def test_structured_output(model, asked, schema, method, strict):
    answer = model.with_structured_output(schema, method=method, strict=strict).invoke([asked])
    assert isinstance(answer, schema)


def test_structured_output_reads_the_picture(model, asked):
    reader = model.with_structured_output(Reading, method="json_schema", include_raw=True)
    assert reader.invoke([asked])["parsed"] == Reading(word="cat")


def test_structured_output_of_a_dictionary(model, asked):
    schema = {
        "title": "reading",
        "description": "What stands in a picture.",
        "type": "object",
        "properties": {"word": {"type": "string", "enum": ["dog", "cat", "horse"]}},
        "required": ["word"],
    }
    assert model.with_structured_output(schema).invoke([asked]) == {"word": "cat"}


@tool
def move(direction: Literal["left", "right"], steps: Literal[1, 2, 3]) -> str:
    """Moves the camera."""
    return f"moved {steps} to the {direction}"


@pytest.mark.parametrize("choice", ["move", "required", "any"])
def test_a_tool_that_has_to_be_called(model, asked, choice):
    (call,) = model.bind_tools([move], tool_choice=choice, parallel_tool_calls=False).invoke([asked]).tool_calls
    assert call["name"] == "move"
    assert move.invoke(call["args"]).startswith("moved ")


def test_a_tool_call_is_streamed(model, asked):
    whole = None
    for chunk in model.bind_tools([move], tool_choice="move").stream([asked]):
        whole = chunk if whole is None else whole + chunk
    (call,) = whole.tool_calls
    assert move.invoke(call["args"]).startswith("moved ")


def test_an_agent(model, asked):
    """The demo model calls no tool of its own accord, so the agent ends with its first answer."""
    agent = create_agent(model, [move], system_prompt="You read signs.")
    assert agent.invoke({"messages": [asked]})["messages"][-1].type == "ai"


def test_the_responses_api(url, asked):
    answer = ChatOpenAI(model="demo", base_url=url, api_key="none", temperature=0, use_responses_api=True).invoke(
        [asked]
    )
    assert answer.text == "cat"
