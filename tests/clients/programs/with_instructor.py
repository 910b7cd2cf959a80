"""instructor: pydantic models as answers, in its modes: tools, JSON, JSON schema; whole, in parts and item by item."""

from __future__ import annotations

from typing import Annotated, Literal

import instructor
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


SCHEMA_MODES = [instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA]


@pytest.mark.parametrize("mode", SCHEMA_MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("form", [Reading, Sign])
def test_an_answer_of_a_form(client, asked, form, mode):
    teacher = instructor.from_openai(client, mode=mode)
    answer = teacher.create(model="demo", messages=asked, response_model=form, temperature=0, max_retries=0)
    assert isinstance(answer, form)


def test_a_json_schema_reads_the_picture(client, asked):
    teacher = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA)
    assert teacher.create(model="demo", messages=asked, response_model=Reading, temperature=0).word == "cat"


def test_json_mode(client, asked):
    """The schema is in the prompt alone, which the demo model cannot follow; the answer is an object all the same."""
    teacher = instructor.from_openai(client, mode=instructor.Mode.JSON)
    with pytest.raises(Exception, match=r"(?i)validation|incomplete|retry"):
        teacher.create(
            model="demo", messages=asked, response_model=Reading, temperature=0, max_tokens=50, max_retries=0
        )


@pytest.mark.parametrize("mode", SCHEMA_MODES[:1] + SCHEMA_MODES[2:], ids=lambda mode: mode.name)
def test_an_answer_in_parts(client, asked, mode):
    teacher = instructor.from_openai(client, mode=mode)
    parts = list(teacher.create_partial(model="demo", messages=asked, response_model=Reading, temperature=0))
    assert Reading.model_validate(parts[-1].model_dump())


def test_a_picture_of_its_own(client, sign):
    teacher = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA)
    asked = [{"role": "user", "content": ["What is the word?", instructor.Image.from_path(sign)]}]
    assert teacher.create(model="demo", messages=asked, response_model=Reading, temperature=0).word == "cat"


class Optionally(BaseModel):
    """A reading, where there is one."""

    result: Reading | None = None
    error: bool = False


def test_a_nullable_model_with_defaults(client, asked):
    teacher = instructor.from_openai(client, mode=instructor.Mode.TOOLS)
    answer, completion = teacher.create_with_completion(
        model="demo", messages=asked, response_model=Optionally, temperature=0, max_retries=0
    )
    assert isinstance(answer, Optionally)
    assert completion.usage.prompt_tokens > 16
