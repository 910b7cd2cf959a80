"""Responses that are kept: for whom, how many and how long; and what goes on from them, on a real server."""

from __future__ import annotations

import dataclasses
import time

import openai
import pytest

from tests.served import Served, question, served
from tests.server.asking import SERVED
from tilewise.errors import InvalidConfig, InvalidField, Overloaded
from tilewise.ignored import Ignored
from tilewise.server.responses.call import ResponseCall, response_call
from tilewise.server.responses.items import response_object
from tilewise.server.responses.store import ResponseStore, StoreLimits, UnknownResponse


def call_of(name: str, text: str = "Hi", background: bool = False) -> ResponseCall:
    body = {"input": text, "request_id": name, "background": background}
    return response_call(body, SERVED, Ignored(), recall=lambda _: ())


class Shelf:
    """A store whose time stands still."""

    def __init__(self, **limits: float) -> None:
        self.now = 0.0
        self.store = ResponseStore(dataclasses.replace(StoreLimits(), **limits), lambda: self.now)

    def put(self, name: str, scope: str = "me", status: str = "completed", text: str = "Hi") -> str:
        call = call_of(name, text, background=status == "in_progress")
        self.store.keep(scope, call, response_object(call, status, []), self.store.measure(call))
        return call.id

    def has(self, name: str, scope: str = "me") -> bool:
        try:
            return self.store.find(scope, name).response["id"] == name
        except UnknownResponse:
            return False


def test_what_one_client_keeps_is_not_anothers():
    shelf = Shelf()
    name = shelf.put("a")
    assert shelf.has(name)
    assert not shelf.has(name, "somebody else")
    with pytest.raises(UnknownResponse, match=f"Response with id '{name}' not found"):
        shelf.store.delete("somebody else", name)


def test_the_oldest_go_by_number():
    shelf = Shelf(most=2)
    names = [shelf.put(name) for name in "abc"]
    assert [shelf.has(name) for name in names] == [False, True, True]


def test_the_oldest_go_by_bytes_and_nothing_is_left_of_them():
    shelf = Shelf(most_bytes=10_000)
    names = [shelf.put(name, text="x" * 2000) for name in "abcdefgh"]
    assert shelf.store.num_bytes <= 10_000
    assert 1 < sum(map(shelf.has, names)) < 6
    assert shelf.has(names[-1])
    with pytest.raises(InvalidField, match="TILEWISE_MAX_STORED_RESPONSES_MB"):
        shelf.put("i", text="x" * 10_001)
    for name in names:
        if shelf.has(name):
            shelf.store.delete("me", name)
    assert (len(shelf.store), shelf.store.num_bytes) == (0, 0)


def test_the_oldest_go_by_age():
    shelf = Shelf(seconds=10)
    first = shelf.put("a")
    shelf.now = 6
    second = shelf.put("b")
    shelf.now = 11
    assert [shelf.has(first), shelf.has(second)] == [False, True]


def test_one_that_is_put_again_counts_once():
    shelf = Shelf()
    shelf.put("a")
    size = shelf.store.num_bytes
    shelf.put("a")
    assert (len(shelf.store), shelf.store.num_bytes) == (1, size)


def test_what_is_being_worked_on_does_not_go():
    shelf = Shelf(most=2, seconds=3)
    names = [shelf.put(name, status="in_progress") for name in "ab"]
    shelf.now = 5
    with pytest.raises(Overloaded, match="2 responses are being worked on"):
        shelf.put("c")
    assert shelf.store.cancel("me", names[0]).response["status"] == "cancelled"
    shelf.now = 7
    assert shelf.store.cancel("me", names[0]).response["status"] == "cancelled", "twice is once"
    assert shelf.has(names[0]), "it is as old as its end"
    assert shelf.has(shelf.put("c"))
    assert not shelf.has(names[0])
    with pytest.raises(InvalidField, match="is in_progress, not completed"):
        shelf.store.conversation("me", names[1])


@pytest.mark.parametrize("value", ["", "0", "-1", "many"])
def test_limits_that_are_no_numbers(monkeypatch, value):
    monkeypatch.delenv("VLLM_ENABLE_RESPONSES_API_STORE", raising=False)
    assert StoreLimits.from_environment() is None
    monkeypatch.setenv("VLLM_ENABLE_RESPONSES_API_STORE", "1")
    assert StoreLimits.from_environment() == StoreLimits()
    monkeypatch.setenv("TILEWISE_MAX_STORED_RESPONSES", value)
    with pytest.raises(InvalidConfig, match="TILEWISE_MAX_STORED_RESPONSES must be a whole number"):
        StoreLimits.from_environment()


@pytest.fixture(scope="module")
def keeping():
    variables = {"VLLM_ENABLE_RESPONSES_API_STORE": "1", "TILEWISE_MAX_STORED_RESPONSES": "50"}
    with served("--max-model-len", "1024", "--api-key", "one", "two", environment=variables) as server:
        yield server


@pytest.fixture(scope="module")
def one(keeping: Served):
    with openai.OpenAI(api_key="one", base_url=f"{keeping.url}/v1", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def two(keeping: Served):
    with openai.OpenAI(api_key="two", base_url=f"{keeping.url}/v1", max_retries=0) as client:
        yield client


[_PARTS] = [message["content"] for message in question("What is the word?", "chinese_question.png")]
SIGHT = {
    "role": "user",
    "content": [
        {"type": "input_image", "image_url": _PARTS[0]["image_url"]["url"]},
        {"type": "input_text", "text": "What is it?"},
    ],
}
"""A question that the demo has a word for."""


def test_kept_and_found_and_deleted(one: openai.OpenAI, two: openai.OpenAI):
    made = one.responses.create(input=[SIGHT], max_output_tokens=3)
    assert made.model_dump()["store"] is True
    assert one.responses.retrieve(made.id) == made
    [item] = one.responses.input_items.list(made.id)
    assert item.to_dict(warnings=False) == {**SIGHT, "type": "message", "status": "completed", "id": item.id}
    [text] = one.responses.input_items.list(one.responses.create(input="Hi", max_output_tokens=2).id)
    assert (text.type, text.role, text.content[0].text) == ("message", "user", "Hi")
    with pytest.raises(openai.NotFoundError, match=f"Response with id '{made.id}' not found"):
        two.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
        one.responses.cancel(made.id)
    one.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        one.responses.retrieve(made.id)
    unkept = one.responses.create(input=[SIGHT], max_output_tokens=3, store=False)
    with pytest.raises(openai.NotFoundError):
        one.responses.retrieve(unkept.id)


def test_a_stream_is_kept_as_its_last_event_tells_it(one: openai.OpenAI):
    events = list(one.responses.create(input=[SIGHT], max_output_tokens=3, stream=True))
    assert one.responses.retrieve(events[-1].response.id) == events[-1].response


def test_a_conversation_goes_on_from_a_response(one: openai.OpenAI, two: openai.OpenAI):
    """As if it were sent whole, but for the instructions, which hold for one response alone."""
    asked = {"max_output_tokens": 8, "temperature": 0}
    raw = {"enable_response_messages": True}
    first = one.responses.create(input=[SIGHT], instructions="Be brief.", **asked)
    second = one.responses.create(input="And another?", previous_response_id=first.id, extra_body=raw, **asked)
    whole = one.responses.create(
        input=[
            SIGHT,
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "And another?"},
        ],
        extra_body=raw,
        **asked,
    )
    assert second.input_messages == whole.input_messages
    assert first.output_text
    assert second.output_text == whole.output_text
    assert second.previous_response_id == first.id
    assert second.output_messages[0]["tokens"]
    with pytest.raises(openai.NotFoundError):
        two.responses.create(input="?", previous_response_id=first.id)


def settled(one: openai.OpenAI, name: str) -> openai.types.responses.Response:
    for _ in range(600):
        if (found := one.responses.retrieve(name)).status not in ("queued", "in_progress"):
            return found
        time.sleep(0.05)
    raise AssertionError(found.status)


def test_in_the_background(one: openai.OpenAI):
    asked = {"input": [SIGHT], "max_output_tokens": 5, "temperature": 0}
    queued = one.responses.create(background=True, **asked)
    assert (queued.status, queued.background) == ("queued", True)
    done = settled(one, queued.id)
    assert done.output_text == one.responses.create(**asked).output_text
    assert done.usage is not None


def test_cancelled_in_the_background(one: openai.OpenAI):
    long = {"ignore_eos": True, "min_tokens": 900}
    queued = one.responses.create(input="Count.", background=True, max_output_tokens=900, extra_body=long)
    assert one.responses.cancel(queued.id).status == "cancelled"
    assert settled(one, queued.id).status == "cancelled"
    assert one.responses.retrieve(queued.id).status == "cancelled"


def test_what_clients_send_beside(keeping: Served):
    answer = keeping.client.post(
        "/v1/responses",
        headers={"Authorization": "Bearer one"},
        json={
            "input": [SIGHT], "max_output_tokens": 1, "top_k": 3, "min_p": 0.1, "seed": 1, "presence_penalty": 0.5,
            "include": ["message.output_text.logprobs", "reasoning.encrypted_content"], "top_logprobs": 2,
            "reasoning": {"summary": "auto"}, "chat_template_kwargs": {"enable_thinking": False}, "ignore_eos": True,
        },
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    [message] = answer.json()["output"]
    assert [len(score["top_logprobs"]) for score in message["content"][0]["logprobs"]] == [2]
    assert answer.headers["x-tilewise-ignored"] == "include.reasoning.encrypted_content, reasoning.summary"
