"""smolagents: OpenAIModel with pictures, streams and schemas; agents that call tools and that write code."""

from __future__ import annotations

import pytest
from PIL import Image
from smolagents import CodeAgent, OpenAIServerModel, Tool, ToolCallingAgent
from smolagents.models import ChatMessage


@pytest.fixture
def model(url):
    return OpenAIServerModel("demo", api_base=url, api_key="none", temperature=0, max_tokens=100)


@pytest.fixture
def picture(sign):
    return {"type": "image", "image": Image.open(sign)}


@pytest.fixture
def asked(picture):
    return [{"role": "user", "content": [picture, {"type": "text", "text": "What is the word?"}]}]


class Move(Tool):
    name = "move"
    description = "Moves the camera."
    inputs = {"direction": {"type": "string", "enum": ["left", "right"], "description": "where to"}}  # noqa: RUF012
    output_type = "string"

    def forward(self, direction: str) -> str:
        return f"moved to the {direction}"


def test_a_picture(model, asked):
    answer = model.generate(asked)
    assert answer.content == "cat"
    assert answer.token_usage.output_tokens == 2


def test_streaming(model, shapes):
    picture = {"type": "image", "image": Image.open(shapes)}
    asked = [{"role": "user", "content": [picture, {"type": "text", "text": "Which shape is on the left?"}]}]
    deltas = list(model.generate_stream(asked))
    assert "".join(delta.content or "" for delta in deltas) == "yellow circle"
    assert sum(delta.token_usage.output_tokens for delta in deltas if delta.token_usage) == 3


def test_what_tools_said(model, asked):
    """smolagents itself turns the roles `tool-call` and `tool-response` into OpenAI's."""
    said = [
        *asked,
        {"role": "tool-call", "content": [{"type": "text", "text": "cat"}]},
        {"role": "tool-response", "content": [{"type": "text", "text": "And what color is the word?"}]},
    ]
    assert model.generate([ChatMessage.from_dict(each) for each in said]).content == "red"


def test_a_schema(model, asked):
    schema = {
        "type": "object",
        "properties": {"word": {"type": "string", "enum": ["dog", "cat"]}},
        "required": ["word"],
    }
    form = {"type": "json_schema", "json_schema": {"name": "reading", "schema": schema}}
    assert model.generate(asked, response_format=form).content.replace(" ", "") == '{"word":"cat"}'


def test_a_tool(model, asked):
    """It asks for `tool_choice: required` wherever there are tools."""
    answer = model.parse_tool_calls(model.generate(asked, tools_to_call_from=[Move()], parallel_tool_calls=False))
    (call,) = answer.tool_calls
    assert call.function.name == "move"
    assert Move()(**call.function.arguments).startswith("moved ")


def test_an_agent_that_calls_tools(model, sign):
    """The prompt that it brings is longer than the demo model's context."""
    agent = ToolCallingAgent([Move()], model, max_steps=1, verbosity_level=0)
    agent.prompt_templates["system_prompt"] = "You read signs."
    agent.run("What is the word?", images=[Image.open(sign)])
    assert agent.memory.steps[1].tool_calls[0].name in ("move", "final_answer")


def test_an_agent_that_writes_code(model, sign):
    """As an object of two texts, by a schema of smolagents: what the demo model writes in them is no program."""
    agent = CodeAgent([], model, max_steps=1, verbosity_level=0, use_structured_outputs_internally=True)
    agent.prompt_templates["system_prompt"] = "You read signs."
    agent.run("What is the word?", images=[Image.open(sign)])
    assert agent.memory.steps[1].token_usage.output_tokens > 0
