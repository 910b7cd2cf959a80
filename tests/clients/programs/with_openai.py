"""OpenAI's own client: several system messages, parsed answers, streams, tools, the Responses and the legacy API."""

from __future__ import annotations

from typing import Annotated, Literal

import openai
import pytest
from pydantic import BaseModel, Field


@pytest.fixture
def client(url):
    return openai.OpenAI(base_url=url, api_key="none")


@pytest.fixture
def asked(data_url):
    picture = {"type": "image_url", "image_url": {"url": data_url}}
    return [{"role": "user", "content": [picture, {"type": "text", "text": "What is the word?"}]}]


class Reading(BaseModel):
    """What stands in a picture."""

    word: Literal["dog", "cat", "horse"]


class Sign(BaseModel):
    """A sign, and what is known of it."""

    reading: Reading
    letters: Annotated[set[Literal["a", "c", "t"]], Field(max_length=3)]
    language: Literal["en", "zh"] | None = None


def test_several_system_and_developer_messages(client, asked):
    more = [{"role": role, "content": "You read signs."} for role in ("system", "developer", "system")]
    few, many = (
        client.chat.completions.create(model="demo", messages=[*first, *asked], temperature=0)
        for first in (more[:1], more)
    )
    assert few.choices[0].message.content == many.choices[0].message.content == "cat"
    assert many.usage.prompt_tokens > few.usage.prompt_tokens


def test_an_answer_goes_back_as_it_came(client, asked):
    """With what answers have and requests lack: `refusal`, `tool_calls` and more that are null."""
    first = client.chat.completions.create(model="demo", messages=asked, temperature=0).choices[0].message
    follow = [*asked, first.model_dump(), {"role": "user", "content": "And what color is the word?"}]
    answer = client.chat.completions.create(model="demo", messages=follow, temperature=0)
    assert answer.choices[0].message.content == "red"


def test_fields_of_openai_without_effect(client, asked):
    answer = client.chat.completions.create(
        model="demo",
        messages=asked,
        temperature=0,
        store=False,
        metadata={"run": "1"},
        user="me",
        safety_identifier="me",
        prompt_cache_key="me",
        service_tier="auto",
        reasoning_effort="low",
        parallel_tool_calls=None,
    )
    assert answer.choices[0].message.content == "cat"
    assert answer.usage.prompt_tokens == 43


@pytest.mark.parametrize("form", [Reading, Sign])
def test_parsed(client, asked, form):
    answer = client.chat.completions.parse(model="demo", messages=asked, temperature=0, response_format=form)
    assert isinstance(answer.choices[0].message.parsed, form)


def test_streaming_parsed(client, asked):
    options = {"include_usage": True}
    with client.chat.completions.stream(
        model="demo", messages=asked, temperature=0, response_format=Reading, stream_options=options
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
    answer = stream.get_final_completion()
    assert answer.choices[0].message.parsed == Reading(word="cat")
    assert "".join(deltas) == answer.choices[0].message.content
    assert answer.usage.total_tokens > answer.usage.prompt_tokens


@pytest.mark.parametrize("strict", [None, False, True])
def test_a_tool(client, asked, strict):
    tool = openai.pydantic_function_tool(Sign)
    tool["function"]["strict"] = strict
    answer = client.chat.completions.create(
        model="demo", messages=asked, temperature=0, tools=[tool], tool_choice="required", parallel_tool_calls=False
    )
    (call,) = answer.choices[0].message.tool_calls
    assert Sign.model_validate_json(call.function.arguments)


def test_the_responses_api(client, data_url):
    content = [{"type": "input_image", "image_url": data_url}, {"type": "input_text", "text": "What is the word?"}]
    more = [{"role": "developer", "content": "You say one word."}, {"role": "user", "content": content}]
    few, many = (
        client.responses.create(model="demo", instructions="You read signs.", input=each, temperature=0)
        for each in (more[1:], more)
    )
    assert few.output_text == many.output_text == "cat"
    assert many.usage.input_tokens > few.usage.input_tokens


def test_the_responses_api_parsed(client, data_url):
    content = [{"type": "input_image", "image_url": data_url}, {"type": "input_text", "text": "What is the word?"}]
    asked = [{"role": "user", "content": content}]
    answer = client.responses.parse(model="demo", input=asked, temperature=0, text_format=Sign)
    assert isinstance(answer.output_parsed, Sign)


def test_completions_and_models(client):
    more = {"ignore_eos": True}
    answer = client.completions.create(model="demo", prompt="The circle is", max_tokens=3, extra_body=more)
    assert answer.usage.completion_tokens == 3
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").id == "demo"
