"""LiteLLM as the provider `openai` with an address, and as `hosted_vllm`: what its proxy does, too."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

import litellm
import pytest
from pydantic import BaseModel, Field


@pytest.fixture(params=["openai", "hosted_vllm"])
def server(request, url):
    return {"model": f"{request.param}/demo", "api_base": url, "api_key": "none", "temperature": 0}


@pytest.fixture
def asked(data_url):
    picture = {"type": "image_url", "image_url": {"url": data_url}}
    return [{"role": "user", "content": [picture, {"type": "text", "text": "What is the word?"}]}]


def test_a_picture(server, asked):
    answer = litellm.completion(messages=asked, **server)
    assert answer.choices[0].message.content == "cat"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == 2


def test_streaming(server, shapes_url):
    picture = {"type": "image_url", "image_url": {"url": shapes_url}}
    asked = [{"role": "user", "content": [picture, {"type": "text", "text": "Which shape is on the left?"}]}]
    chunks = list(litellm.completion(messages=asked, stream=True, stream_options={"include_usage": True}, **server))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "yellow circle"
    assert chunks[-1].usage.completion_tokens == 3


def test_many_at_once(server, asked):
    async def ask():
        return await asyncio.gather(*(litellm.acompletion(messages=asked, **server) for _ in range(4)))

    assert [answer.choices[0].message.content for answer in asyncio.run(ask())] == ["cat"] * 4


def test_two_system_messages_and_a_developer(server, asked):
    system = [{"role": "system", "content": "You read signs."}]
    more = [{"role": "system", "content": "You say one word."}, {"role": "developer", "content": "You are quick."}]
    one, three = (litellm.completion(messages=[*first, *asked], **server) for first in (system, system + more))
    assert one.choices[0].message.content == three.choices[0].message.content == "cat"
    assert three.usage.prompt_tokens > one.usage.prompt_tokens


def test_a_prefix_is_continued(server, shapes_url):
    picture = {"type": "image_url", "image_url": {"url": shapes_url}}
    asked = {"role": "user", "content": [picture, {"type": "text", "text": "Which shape is on the left?"}]}
    answer = litellm.completion(messages=[asked, {"role": "assistant", "content": "yellow", "prefix": True}], **server)
    assert answer.choices[0].message.content == " circle"


def test_reasoning_effort_without_effect(server, asked):
    plain = litellm.completion(messages=asked, **server)
    asked_to_think = litellm.completion(
        messages=asked, reasoning_effort="low", allowed_openai_params=["reasoning_effort"], **server
    )
    assert asked_to_think.choices[0].message.content == plain.choices[0].message.content == "cat"
    assert asked_to_think.usage.prompt_tokens == plain.usage.prompt_tokens


def test_dropped_and_further_fields(server, asked):
    answer = litellm.completion(
        messages=asked, drop_params=True, user="me", seed=1, extra_body={"top_k": 1, "chat_id": "x"}, **server
    )
    assert answer.choices[0].message.content == "cat"


def test_an_answer_goes_back_as_it_came(server, asked):
    """Its message has `tool_calls: null` and more that only answers have."""
    first = litellm.completion(messages=asked, **server).choices[0].message
    follow = {"role": "user", "content": "And what color is the word?"}
    answer = litellm.completion(messages=[*asked, first, follow], **server)
    assert answer.choices[0].message.content == "red"


class Reading(BaseModel):
    """What stands in a picture."""

    word: Literal["dog", "cat", "horse"]


class Letters(BaseModel):
    letters: Annotated[set[Literal["a", "c", "t"]], Field(max_length=3)]
    language: Literal["en", "zh"] | None = None


@pytest.mark.parametrize("form", [Reading, Letters])
def test_structured_output(server, asked, form):
    answer = litellm.completion(messages=asked, response_format=form, **server)
    form.model_validate_json(answer.choices[0].message.content)


def test_a_schema_as_its_guide_writes_it(server, asked):
    schema = {"type": "object", "properties": {"word": {"enum": ["dog", "cat"]}}, "required": ["word"]}
    form = {"type": "json_schema", "json_schema": {"name": "reading", "schema": schema}}
    answer = litellm.completion(messages=asked, response_format=form, **server)
    assert answer.choices[0].message.content.replace(" ", "") == '{"word":"cat"}'


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool(server, asked, stream):
    parameters = {"type": "object", "properties": {"to": {"enum": ["left", "right"]}}, "required": ["to"]}
    move = {"type": "function", "function": {"name": "move", "parameters": parameters}}
    call_one = {"tools": [move], "tool_choice": "required", "parallel_tool_calls": False}
    answer = litellm.completion(messages=asked, stream=stream, **call_one, **server)
    if stream:
        answer = litellm.stream_chunk_builder(list(answer))
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "move"
    assert call.function.arguments.replace(" ", "") in ('{"to":"left"}', '{"to":"right"}')
    result = {"role": "tool", "tool_call_id": call.id, "content": "done"}
    follow = litellm.completion(messages=[*asked, answer.choices[0].message, result], tools=[move], **server)
    assert follow.usage.prompt_tokens > answer.usage.prompt_tokens


def test_a_text_completion_with_a_field_that_openai_does_not_have(url):
    answer = litellm.text_completion(
        model="text-completion-openai/demo",
        api_base=url,
        api_key="none",
        prompt="The circle is",
        max_tokens=3,
        extra_body={"ignore_eos": True},
    )
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (3, "length")


def test_the_responses_api(server, asked):
    answer = litellm.responses(
        model=server["model"],
        api_base=server["api_base"],
        api_key="none",
        temperature=0,
        instructions="You read signs.",
        input=[{"role": "user", "content": [{"type": "input_text", "text": "What is the word?"}]}],
        max_output_tokens=16,
    )
    assert answer.usage.output_tokens > 0


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"model": "openai/nobody"}, litellm.NotFoundError, "does not exist. This server has demo"),
        ({"top_p": 2.0}, litellm.BadRequestError, "top_p"),
        ({"max_tokens": 99_999}, litellm.ContextWindowExceededError, "maximum context length"),
    ],
)
def test_an_error_is_of_its_kind(server, asked, fields, error, says):
    with pytest.raises(error, match=says):
        litellm.completion(messages=asked, **{**server, **fields})
