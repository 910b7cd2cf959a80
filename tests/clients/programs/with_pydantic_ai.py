"""pydantic-ai: system prompt and instructions, pictures by bytes and address, output types in each mode, tools."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field
from pydantic_ai import Agent, BinaryContent, ImageUrl, NativeOutput, PromptedOutput, ToolOutput, UsageLimits
from pydantic_ai.exceptions import UsageLimitExceeded
from pydantic_ai.messages import ModelRequest, ModelResponse, ToolCallPart, ToolReturnPart, UserPromptPart
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


@pytest.fixture
def model(url):
    return OpenAIChatModel("demo", provider=OpenAIProvider(base_url=url, api_key="none"), settings={"temperature": 0})


@pytest.fixture
def asked(sign):
    return ["What is the word?", BinaryContent(sign.read_bytes(), media_type="image/png")]


def test_a_picture(model, asked):
    answer = Agent(model).run_sync(asked)
    assert answer.output == "cat"
    assert answer.usage.output_tokens == 2


def test_the_address_of_a_picture(model, data_url):
    assert Agent(model).run_sync(["What is the word?", ImageUrl(data_url, media_type="image/png")]).output == "cat"


def test_system_prompt_and_instructions(model, asked):
    one = Agent(model, system_prompt="You read signs.").run_sync(asked)
    both = Agent(model, system_prompt="You read signs.", instructions="You say one word.").run_sync(asked)
    three = Agent(model, system_prompt=["You read signs.", "You are quick."], instructions="You say one word.")
    assert one.output == both.output == "cat"
    assert one.usage.input_tokens < both.usage.input_tokens < three.run_sync(asked).usage.input_tokens


def test_a_conversation_with_new_instructions(model, asked):
    """What was said goes along; where the instructions of now stand among it is for pydantic-ai to say."""
    agent = Agent(model, system_prompt="You read signs.")
    first = agent.run_sync(asked)
    follow = agent.run_sync(
        "And what color is the word?", message_history=first.all_messages(), instructions="You say one word."
    )
    assert follow.output
    assert follow.usage.input_tokens > first.usage.input_tokens + first.usage.output_tokens


def test_streaming(model, shapes):
    agent = Agent(model)
    asked = ["Which shape is on the left?", BinaryContent(shapes.read_bytes(), media_type="image/png")]
    answer = agent.run_stream_sync(asked)
    assert "".join(answer.stream_text(delta=True, debounce_by=None)) == "yellow circle"
    assert answer.usage.output_tokens == 3


class Reading(BaseModel):
    """What stands in a picture."""

    word: Literal["dog", "cat", "horse"]


class Sign(BaseModel):
    """A sign, and what is known of it."""

    reading: Reading
    letters: Annotated[set[Literal["a", "c", "t"]], Field(max_length=3)]
    language: Literal["en", "zh"] | None = None


@pytest.mark.parametrize("mode", [ToolOutput, NativeOutput, PromptedOutput])
@pytest.mark.parametrize("form", [Reading, Sign])
def test_an_output_type(model, asked, form, mode):
    """Prompted output is left to the model's wit, but for `response_format: json_object`: it may be any object."""
    agent = Agent(model, output_type=mode(form), retries=0, model_settings={"max_tokens": 200})
    if mode is PromptedOutput:
        with pytest.raises(Exception, match=r"(?i)retries|validation|token limit"):
            agent.run_sync(asked)
    else:
        assert isinstance(agent.run_sync(asked).output, form)


def test_native_output_reads_the_picture(model, asked):
    assert Agent(model, output_type=NativeOutput(Reading)).run_sync(asked).output == Reading(word="cat")


def test_an_output_type_of_choices(model, asked):
    agent = Agent(model, output_type=[Reading, Sign], retries=0, model_settings={"max_tokens": 300})
    assert isinstance(agent.run_sync(asked).output, Reading | Sign)


def test_tools_one_at_a_time(model, asked):
    """The demo model was not trained on tools: which it calls may be any, what it calls may not."""
    moved = []
    agent = Agent(model, output_type=Reading, model_settings={"parallel_tool_calls": False})

    @agent.tool_plain
    def move(direction: Literal["left", "right"]) -> str:
        """Moves the camera."""
        moved.append(direction)
        return "moved"

    try:
        answer = agent.run_sync(asked, usage_limits=UsageLimits(request_limit=3))
    except UsageLimitExceeded:
        assert len(moved) == 3
    else:
        assert isinstance(answer.output, Reading)


def test_a_picture_from_a_tool(model, sign):
    """pydantic-ai puts such a picture into a user's message behind the tool's."""
    agent = Agent(model, output_type=Reading)
    picture = BinaryContent(sign.read_bytes(), media_type="image/png")
    history = [
        ModelRequest([UserPromptPart("What is the word?")]),
        ModelResponse([ToolCallPart("camera", {}, tool_call_id="call_1")]),
        ModelRequest([ToolReturnPart("camera", ["taken", picture], tool_call_id="call_1")]),
    ]
    assert isinstance(agent.run_sync("What is the word?", message_history=history).output, Reading)


def test_the_responses_api(url, asked):
    model = OpenAIResponsesModel("demo", provider=OpenAIProvider(base_url=url, api_key="none"))
    agent = Agent(model, system_prompt="You read signs.", instructions="You say one word.")
    assert agent.run_sync(asked, model_settings={"temperature": 0}).output == "cat"
