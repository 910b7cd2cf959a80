"""LlamaIndex, OpenAILike: chat with pictures, streams, system messages, structured answers, tools."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.core.prompts import ChatPromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field


@pytest.fixture
def model(url):
    return OpenAILike(
        model="demo",
        api_base=url,
        api_key="none",
        context_window=2048,
        is_chat_model=True,
        is_function_calling_model=True,
        temperature=0,
    )


@pytest.fixture
def asked(sign):
    return ChatMessage(role="user", blocks=[ImageBlock(path=sign), TextBlock(text="What is the word?")])


def test_a_picture(model, asked):
    answer = model.chat([asked])
    assert answer.message.content == "cat"
    assert answer.raw.usage.completion_tokens == 2


@pytest.mark.parametrize("detail", [None, "low", "high", "auto"])
def test_the_address_of_a_picture(model, data_url, detail):
    blocks = [TextBlock(text="What is the word?"), ImageBlock(url=data_url, detail=detail)]
    assert model.chat([ChatMessage(role="user", blocks=blocks)]).message.content == "cat"


def test_streaming(model, shapes):
    asked = ChatMessage(role="user", blocks=[ImageBlock(path=shapes), TextBlock(text="Which shape is on the left?")])
    answers = list(model.stream_chat([asked]))
    assert "".join(answer.delta or "" for answer in answers) == answers[-1].message.content == "yellow circle"


def test_several_system_messages(model, asked):
    system = ChatMessage(role="system", content="You read signs.")
    developer = ChatMessage(role="developer", content="You say one word.")
    one, more = model.chat([system, asked]), model.chat([system, system, asked, developer])
    assert one.message.content == "cat"
    assert more.raw.usage.prompt_tokens > one.raw.usage.prompt_tokens


def test_a_conversation(model, asked):
    """The answer goes back as it came."""
    first = model.chat([asked]).message
    assert model.chat([asked, first, ChatMessage("And what color is the word?")]).message.content == "red"


class Reading(BaseModel):
    """What stands in a picture."""

    word: Literal["dog", "cat", "horse"]


class Sign(BaseModel):
    """A sign, and what is known of it."""

    reading: Reading
    letters: Annotated[set[Literal["a", "c", "t"]], Field(max_length=3)]
    language: Literal["en", "zh"] | None = None


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("form", [Reading, Sign])
def test_structured_answers(model, asked, form, native):
    model = model.model_copy(update={"should_use_structured_outputs": native})
    answer = model.as_structured_llm(form).chat([asked])
    assert isinstance(answer.raw, form)


def test_structured_prediction(model):
    prompt = ChatPromptTemplate([ChatMessage(role="system", content="You spell."), ChatMessage("Spell {word}.")])
    assert isinstance(model.structured_predict(Reading, prompt, word="cat"), Reading)


class Steps(BaseModel):
    direction: Literal["left", "right"]
    steps: Literal[1, 2, 3] = 1


def move(direction: str, steps: int = 1) -> str:
    """Moves the camera."""
    return f"moved {steps} to the {direction}"


def test_a_tool(model, asked):
    tool = FunctionTool.from_defaults(move, fn_schema=Steps)
    answer = model.predict_and_call([tool], chat_history=[asked], tool_required=True, error_on_tool_error=True)
    assert answer.response.startswith("moved ")


def test_completion(model):
    assert model.complete("What is the word?").raw.usage.prompt_tokens > 0
