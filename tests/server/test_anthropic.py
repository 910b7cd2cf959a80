"""Anthropic's Messages API: bodies as its clients write them, answers and events as they read them, and its own SDK."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import anthropic
import pytest

from tests.served import PICTURES, Served, served
from tests.server.asking import SERVED, output, pieces, under
from tests.server.live import KEYS, ROOT
from tilewise.errors import BrokenAnswer, InvalidField
from tilewise.ignored import Ignored
from tilewise.outputs.parts import AnswerReader
from tilewise.server.anthropic.blocks import MessageStream, whole_message
from tilewise.server.anthropic.call import count_call, messages_call
from tilewise.types import Usage

DATA = base64.b64encode((PICTURES / "color_and_shape.png").read_bytes()).decode()
PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}}
LOOK = {
    "name": "look",
    "description": "Look around.",
    "input_schema": {"type": "object", "properties": {"where": {"enum": ["left", "right"]}}, "required": ["where"]},
}
USE = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"where": "左"}}
CALL = '<tool_call>\n{"name": "look", "arguments": {"where": "left"}}\n</tool_call>'
USAGE = Usage(prompt_tokens=310, completion_tokens=16, image_tokens=256, tiles=1, cached_tokens=32)


def ask(*messages: dict[str, Any], ignored: Ignored | None = None, **fields: Any) -> Any:
    body = {"max_tokens": 9, "messages": list(messages) or [user("Hi")], **fields}
    return messages_call(body, SERVED, Ignored() if ignored is None else ignored)


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}


def text(value: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **more}


def test_a_conversation_becomes_messages_of_a_chat():
    assistant = {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm"}, text("I look."), USE]}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [text("a tree"), PICTURE]}
    call = ask(user(PICTURE, text("Where?")), assistant, user(result, text("And now?")), system=[text("A"), text("B")],
               tools=[LOOK])  # fmt: skip
    found = [(message.role, message.text, len(message.images), message.calls) for message in call.prompt.messages]
    assert found == [
        ("system", "A\nB", 0, ()),
        ("user", "Where?", 1, ()),
        ("assistant", "I look.", 0, ('{"name": "look", "arguments": {"where": "左"}}',)),
        ("tool", "a tree", 1, ()),
        ("user", "And now?", 0, ()),
    ]
    assert call.prompt.messages[1].images[0].url == f"data:image/png;base64,{DATA}"
    assert json.loads(call.prompt.tools[0])["function"]["parameters"] == LOOK["input_schema"]
    assert call.parts.calls == "auto"


def test_options_become_those_of_a_chat():
    call = ask(temperature=0.5, top_k=3, top_p=0.9, seed=4, stop_sequences=["x"], max_tokens=12, stream=True)
    sampling = call.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed) == (0.5, 3, 0.9, 4)
    assert (sampling.stop, sampling.max_tokens, call.reply.stream) == (("x",), 12, True)
    assert call.max_tokens is None, "an answer that is too long for the context ends with it"
    assert call.reply.id.startswith("msg_")


@pytest.mark.parametrize(
    ("choice", "calls", "parallel"),
    [
        ({"type": "auto"}, "auto", True),
        ({"type": "any", "disable_parallel_tool_use": True}, "required", False),
        ({"type": "tool", "name": "look"}, "named", True),
        ({"type": "none"}, "none", True),
        (None, "auto", True),
    ],
)
def test_choices_of_tools(choice, calls, parallel):
    parts = ask(tools=[LOOK], tool_choice=choice).parts
    assert (parts.calls, parts.parallel) == (calls, parallel)


def test_an_answer_that_was_begun_is_gone_on_with():
    call = ask(user("Hi"), {"role": "assistant", "content": "The"})
    assert call.prompt.ending == "continue"
    assert call.echo == ""


def test_a_form_of_the_answer():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for fields in ({"output_config": {"format": {"type": "json_schema", "schema": schema}}},
                   {"output_format": {"type": "json_schema", "schema": schema}}):  # fmt: skip
        call = ask(**fields)
        assert call.sampling.structured_outputs.json == schema
        assert call.form_field == "output_config.format"


@pytest.mark.parametrize(("thinking", "asked"), [("enabled", True), ("adaptive", True), ("disabled", False)])
def test_thinking(thinking, asked):
    ignored = Ignored()
    body = {"max_tokens": 9, "messages": [user("Hi")], "thinking": {"type": thinking, "budget_tokens": 1024}}
    assert messages_call(body, SERVED, ignored).prompt.thinking is asked
    assert "thinking.budget_tokens" in ignored.reasons


def test_what_has_no_effect_is_named():
    ignored = Ignored()
    ask(user(text("Hi", cache_control={"type": "ephemeral"})), metadata={"user_id": "a"}, ignored=ignored,
        output_config={"effort": "high"}, context_management={"edits": []}, novelty=1)  # fmt: skip
    assert set(ignored.reasons) == {
        *("messages.content.cache_control", "metadata", "output_config.effort", "context_management", "novelty"),
    }  # fmt: skip


WRONG = [
    ({"messages": []}, "messages", "messages is empty"),
    ({"messages": [{"role": "system", "content": "a"}]}, "messages[0].role", "belongs into the field system"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "a text or a list of blocks, got int"),
    ({"messages": [user("a"), user(text("a"), 5)]}, "messages[1].content[1]", "must be a block"),
    ({"messages": [user({"type": "text", "text": 5})]}, "messages[0].content[0]", "text must be a text, got int"),
    ({"messages": [user({"type": "imagee"})]}, "messages[0].content[0]", "text, image, document, got 'imagee'"),
    ({"messages": [user({"type": "image", "source": 5})]}, "messages[0].content[0].source", "base64 or url, got None"),
    ({"messages": [user({"type": "image", "source": {"type": "url", "url": 5}})]}, "messages[0].content[0].source",
     "url must be a text"),
    ({"messages": [user({"type": "document", "source": {"type": "base64"}})]}, "messages[0].content[0]",
     "send pages as blocks of type image"),
    ({"messages": [user(USE)]}, "messages[0].content[0]", "tool_use stand in messages of role assistant"),
    ({"messages": [{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "a"}]}]},
     "messages[0].content[0]", "tool_result stand in messages of role user"),
    ({"messages": [user({"type": "tool_result"})]}, "messages[0].content[0]", "tool_use_id must be a text, got None"),
    ({"messages": [user({"type": "tool_result", "tool_use_id": "a", "content": [text("a"), text(None)]})]},
     "messages[0].content[0].content[1]", "text must be a text"),
    ({"messages": [{"role": "assistant", "content": [{**USE, "name": None}]}]}, "messages[0].content[0]",
     "name must be a text, got NoneType"),
    ({"messages": [{"role": "assistant", "content": [{**USE, "input": "a"}]}]}, "messages[0].content[0]",
     "input must be an object, got str"),
    ({"system": [PICTURE]}, "system[0]", "type must be one of text, got 'image'"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type", "functions are called by you"),
    ({"tools": [LOOK], "tool_choice": {"type": "tool"}}, "tool_choice.name", "needs the name of the tool"),
    ({"tools": [LOOK], "tool_choice": {"type": "tool", "name": "a"}}, "tool_choice", "tools has look"),
    ({"tools": [{**LOOK, "input_schema": {"propertis": {}}}], "tool_choice": {"type": "any"}}, "tools[0].input_schema",
     "Did you mean properties?"),
    ({"stop_sequences": [""]}, "stop_sequences", "stop_sequences must be strings that are not empty"),
    ({"stop": ["a"]}, "stop", "Its name here is stop_sequences"),
    ({"mcp_servers": [{}]}, "mcp_servers", "asks no other servers"),
    ({"max_tokns": 5}, "max_tokns", "Did you mean max_tokens?"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "says"), WRONG)
def test_what_cannot_be_is_refused_where_it_stands(fields, param, says):
    with pytest.raises(InvalidField) as caught:
        ask(**fields)
    assert (caught.value.param, says in str(caught.value)) == (param, True), str(caught.value)


def test_counting_needs_no_length_and_no_server_that_calls_tools():
    call = count_call({"messages": [user("Hi")], "tools": [LOOK]}, SERVED, Ignored())
    assert len(call.prompt.tools) == 1
    with pytest.raises(InvalidField, match="has no field 'max_tokenss'"):
        count_call({"messages": [user("Hi")], "max_tokenss": 1}, under(strict_fields=True), Ignored())


def told(events: list[Any]) -> dict[str, Any]:
    """The message that a client puts together of a stream's events."""
    message = {**events[0]["message"]}
    blocks: list[dict[str, Any]] = []
    for event in events[1:-2]:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append({**event["content_block"], **({"input": ""} if "input" in event["content_block"] else {})})
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            key, value = next((key, value) for key, value in delta.items() if key != "type")
            blocks[-1]["input" if key == "partial_json" else key] += value
        else:
            assert event == {"type": "content_block_stop", "index": len(blocks) - 1}
    assert events[-2]["type"] == "message_delta"
    assert events[-1] == {"type": "message_stop"}
    for block in blocks:
        if block["type"] == "tool_use":
            block |= {"input": json.loads(block["input"]), "id": None}
    return {**message, "content": blocks, **events[-2]["delta"], "usage": events[-2]["usage"]}


@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize(
    ("texts", "finish", "stop", "kinds", "reason"),
    [
        (["A ", "tiger", "."], "stop", None, ["text"], "end_turn"),
        (["A", "", " tiger"], "length", None, ["text"], "max_tokens"),
        (["A"], "stop", "END", ["text"], "stop_sequence"),
        (["A"], "stop", 7, ["text"], "end_turn"),
        (["<think>", "Hm", "m.", "</think>", "\n\n", "A."], "stop", None, ["thinking", "text"], "end_turn"),
        (["I look.\n", CALL[:20], CALL[20:]], "stop", None, ["text", "tool_use"], "tool_use"),
        ([CALL, "\n", CALL], "stop", None, ["tool_use", "tool_use"], "tool_use"),
        ([""], "stop", None, [], "end_turn"),
    ],
)
def test_streams_tell_what_whole_answers_say(texts, finish, stop, kinds, reason, interval):
    call = ask(tools=[LOOK])
    stream, reader = MessageStream(call, interval), AnswerReader(call.parts)
    answer = [replace(piece, stop_reason=stop if piece.finish_reason else None) for piece in pieces(texts, finish)]
    events = [event for piece in answer for event in stream.take(piece, USAGE)]
    for piece in answer:
        reader.add(piece.text, piece.finish_reason is not None)
    (made,) = output("".join(texts), finish=finish).outputs
    whole = whole_message(call, replace(made, stop_reason=stop), reader.parts, USAGE)
    assert [block["type"] for block in whole["content"]] == kinds
    assert (whole["stop_reason"], whole["stop_sequence"]) == (reason, "END" if reason == "stop_sequence" else None)
    assert whole["usage"] == {
        "input_tokens": 278, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 32, "output_tokens": 16
    }  # fmt: skip
    ids = [block.pop("id") for block in whole["content"] if "id" in block]
    assert all(name.startswith("toolu_") for name in ids)
    streamed = told(events)
    for block in streamed["content"]:
        block.pop("id", None)
    assert streamed == whole


def test_an_answer_that_broke_its_form_is_an_error():
    with pytest.raises(BrokenAnswer):
        MessageStream(ask()).take(pieces(["{"], finish="error")[0], USAGE)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    flags = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--stream-interval", "2")
    with served("--max-model-len", "1024", "--api-key", *KEYS, *flags) as server:
        yield server
        assert server.stop() == 0


@pytest.fixture
def client(server: Served) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key=KEYS[0], max_retries=0) as client:
        yield client


ASKED: dict[str, Any] = {"model": "demo", "messages": [user(PICTURE, text("What color is the circle?"))]}


def test_a_picture_streamed_and_whole(client: anthropic.Anthropic):
    whole = client.messages.create(max_tokens=32, **ASKED)
    assert whole.content[0].text.strip() in ("red", "yellow", "blue", "green")
    assert whole.stop_reason == "end_turn"
    with client.messages.stream(max_tokens=32, **ASKED) as stream:
        found = stream.get_final_message()
    assert (found.content[0].text, found.stop_reason) == (whole.content[0].text, "end_turn")
    counted = client.messages.count_tokens(**ASKED).input_tokens
    for usage in (whole.usage, found.usage):
        assert usage.input_tokens + usage.cache_read_input_tokens == counted
    assert found.usage.cache_read_input_tokens > 0


def test_tools_are_called_and_told(client: anthropic.Anthropic):
    asked = {"model": "demo", "max_tokens": 64, "tools": [LOOK], "messages": [user("Look.")]}
    call = client.messages.create(tool_choice={"type": "tool", "name": "look"}, **asked)
    assert call.stop_reason == "tool_use"
    assert call.content[0].input["where"] in ("left", "right")
    turns = [
        user("Look."),
        {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in call.content]},
        user({"type": "tool_result", "tool_use_id": call.content[0].id, "content": [text("a tree"), PICTURE]}),
    ]
    assert client.messages.create(**{**asked, "messages": turns}).type == "message"


def test_errors_are_those_of_the_api(client: anthropic.Anthropic, server: Served):
    for fields, kind, said in (
        ({"model": "a"}, anthropic.NotFoundError, "not_found_error"),
        ({"messages": [user({"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/a"}})]},
         anthropic.BadRequestError, "invalid_request_error"),
    ):  # fmt: skip
        with pytest.raises(kind) as caught:
            client.messages.create(max_tokens=3, **{**ASKED, **fields})
        assert caught.value.body["type"] == "error"
        assert caught.value.body["error"]["type"] == said
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=server.url, api_key="another", max_retries=0).messages.create(
            max_tokens=3, **ASKED
        )
    with anthropic.Anthropic(base_url=server.url, auth_token=KEYS[1], max_retries=0) as other:
        assert other.messages.create(max_tokens=3, **ASKED).content


def test_a_key_by_either_header_below_a_path(locked: Served):
    body = {**ASKED, "max_tokens": 2}
    for headers in ({"x-api-key": KEYS[1]}, {"Authorization": f"Bearer {KEYS[1]}"}):
        assert locked.client.post(f"{ROOT}/v1/messages", json=body, headers=headers).status_code == 200
    refused = locked.client.post(f"{ROOT}/v1/messages", json={**body, "max_tokens": 0}, headers=headers)
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")
