"""The Responses API: what is asked, and the events that tell the answer."""

import json

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.outputs.cutting import cut
from tests.server.asking import SERVED, USAGE, pieces, score
from tilewise.errors import BrokenAnswer, InvalidField, InvalidRequest
from tilewise.ignored import Ignored
from tilewise.inputs.messages import ParsedMessage
from tilewise.inputs.pieces import MediaPlace
from tilewise.sampling_params import StructuredOutputsParams
from tilewise.server.problems import Problem
from tilewise.server.responses.call import response_call
from tilewise.server.responses.stream import ResponseStream

EVENTS = TypeAdapter(ResponseStreamEvent)
LOOK = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}, "strict": True}
CALL = '<tool_call>\n{"name": "look", "arguments": {"where": "left"}}\n</tool_call>'


def read(item="Hi", **fields):
    return response_call({"input": item, **fields}, SERVED, Ignored())


def answer(text, finish="stop", scores=None, **fields):
    stream = ResponseStream(read(**fields))
    events = stream.opening()
    for piece in pieces(cut(text, [3] * 100) or [""], finish, scores=scores):
        events += stream.take(piece, USAGE)
    return stream.response, events


def test_a_text_is_a_message_of_the_user():
    call = read("Hi", instructions="Be brief.", max_output_tokens=5, temperature=0, top_p=0.5)
    assert call.chat.prompt.messages == (
        ParsedMessage("system", ["Be brief."]),
        ParsedMessage("user", ["Hi"]),
    )
    sampling = call.chat.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (5, 0, 0.5)
    assert read(request_id="x").id == "resp_x"


ASKED = {"type": "function_call", "call_id": "2", "name": "look", "arguments": '{"a": 1}'}


def test_items():
    call = read(
        [
            {"role": "user", "content": [{"type": "input_text", "text": "What?"},
                                         {"type": "input_image", "image_url": "data:,", "detail": "low"}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
             "content": [{"type": "output_text", "text": "I look.", "annotations": []}]},
            {"type": "function_call", "id": "fc_1", "call_id": "1", "name": "look", "arguments": "{}"},
            ASKED,
            {"type": "function_call_output", "call_id": "1", "output": "a wall"},
        ]
    )  # fmt: skip
    user, assistant, tool = call.chat.prompt.messages
    assert user.parts == ["What?", MediaPlace("image")]
    assert assistant.parts == ["I look."]
    assert [json.loads(made)["arguments"] for made in assistant.calls] == [{}, {"a": 1}]
    assert tool == ParsedMessage("tool", ["a wall"])
    assert read([{"role": "assistant", "tool_calls": None}, ASKED]).chat.prompt.messages[0].calls


def test_forms_tools_and_effort():
    form = {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}
    assert read(text={"format": form}).chat.sampling.structured_outputs == StructuredOutputsParams(
        json={"type": "object"}
    )
    assert read(text={"format": {"type": "text"}}).chat.sampling.structured_outputs is None
    named = read(tools=[LOOK], tool_choice={"type": "function", "name": "look"})
    assert (named.chat.parts.calls, named.chat.parts.name) == ("named", "look")
    assert read(reasoning={"effort": "high"}).chat.prompt.thinking is True
    assert read(top_logprobs=2).chat.sampling.logprobs == 2


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"item": []}, "input is empty"),
        ({"item": [{"type": "item_reference", "id": "x"}]}, "type must be message, function_call"),
        ({"item": [{"type": "function_call_output", "call_id": "1"}]}, "needs content"),
        ({"item": [{"type": "function_call_output", "call_id": {}, "output": "a"}]}, "call_id must be a text, got {}"),
        ({"item": [{"content": "a"}, {"type": "function_call", "name": "look"}]}, "role must be one of"),
        ({"item": [{"role": "assistant", "tool_calls": 1}, {"type": "function_call", "name": "look"}]}, "be a list"),
        ({"previous_response_id": "resp_1"}, "VLLM_ENABLE_RESPONSES_API_STORE=1"),
        ({"background": True}, "VLLM_ENABLE_RESPONSES_API_STORE=1"),
        ({"background": True, "store": False}, "only be used when `store` is true"),
        ({"background": True, "stream": True}, "background with stream"),
        ({"conversation": "conv_1"}, "previous_response_id"),
    ],
)
def test_what_needs_memory_is_refused(fields, says):
    with pytest.raises((InvalidField, InvalidRequest)) as caught:
        read(**fields)
    assert says in str(caught.value)


def test_the_events_of_a_text():
    response, events = answer("A tiger.", metadata={"a": "b"}, temperature=0)
    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 3,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert "".join(e["delta"] for e in events if e["type"].endswith("delta")) == "A tiger."
    parsed = Response.model_validate(response)
    assert (parsed.output_text, parsed.status, parsed.metadata, parsed.temperature) == (
        "A tiger.", "completed", {"a": "b"}, 0
    )  # fmt: skip
    assert (parsed.usage.input_tokens, parsed.usage.output_tokens, parsed.usage.total_tokens) == (310, 16, 326)
    assert events[-1]["response"] == response


def test_reasoning_text_and_calls_are_items_of_their_own():
    response, events = answer(f"<think>Hm, hm.</think>I look.\n{CALL}\n{CALL}", tools=[LOOK])
    kinds = [item["type"] for item in response["output"]]
    assert kinds == ["reasoning", "message", "function_call", "function_call"]
    assert response["output"][0]["content"] == [{"type": "reasoning_text", "text": "Hm, hm."}]
    assert response["output"][1]["content"][0]["text"] == "I look."
    assert [item["arguments"] for item in response["output"][2:]] == ['{"where": "left"}'] * 2
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == response["output"]
    grown: dict = {}
    for event in events:
        if event["type"].endswith("arguments.delta"):
            grown[event["item_id"]] = grown.get(event["item_id"], "") + event["delta"]
    assert list(grown.values()) == ['{"where": "left"}'] * 2


@pytest.mark.parametrize("text", ["A tiger.", "", f"<think>Hm.</think>a\n{CALL}", "<think>Hm"])
@pytest.mark.parametrize("finish", ["stop", "length"])
def test_openais_own_types_take_them(text, finish):
    scores = {token: score(-0.5) for token in range(5, 100)}
    response, events = answer(text, finish, scores, tools=[LOOK], top_logprobs=1)
    Response.model_validate(response, strict=False)
    for event in events:
        assert EVENTS.validate_python(event).type == event["type"]


def test_an_answer_that_was_cut_short():
    response, events = answer("A tig", finish="length")
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert (events[-1]["type"], response["output"][0]["status"]) == ("response.incomplete", "incomplete")


def test_an_answer_that_fails():
    stream = ResponseStream(read())
    stream.opening()
    with pytest.raises(BrokenAnswer) as caught:
        stream.take(pieces(["{"], "error")[0], USAGE)
    (event,) = stream.failed(Problem.of(caught.value))
    assert (event["type"], event["response"]["status"]) == ("response.failed", "failed")
    assert EVENTS.validate_python(event).response.error.message.startswith("The answer could not be followed")
