"""Chunks of streamed chats: their order, their keys, and that they add up to the whole answer."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.outputs.cutting import ANY_CUT, cut
from tests.server.asking import LOOK, USAGE, ask, body_of, output, pieces, score
from tilewise.errors import BrokenAnswer
from tilewise.outputs.parts import AnswerReader
from tilewise.server.chat.answers import ChatStream, chat_body
from tilewise.server.exchange import data_event, named_event
from tilewise.types import PictureReport

CALL = '<tool_call>\n{"name": "look", "arguments": {"where": "left"}}\n</tool_call>'


def stream(call, *sequences):
    """All chunks of pieces in this order."""
    taker = ChatStream(call, prompt_token_ids=(1, 2, 3))
    chunks = [chunk for piece in itertools.chain(*sequences) for chunk in taker.take(piece, USAGE)]
    return [*chunks, *taker.finish(output())]


def deltas(chunks):
    return [choice["delta"] for chunk in chunks for choice in chunk["choices"]]


def test_the_order_and_the_keys():
    call = ask(stream=True, stream_options={"include_usage": True}, request_id="x")
    head = {"id": "chatcmpl-x", "object": "chat.completion.chunk", "created": call.reply.created}
    head["model"] = "internvl3_5"

    def chunk(delta, **end):
        return {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, **end}]}

    assert stream(call, pieces(["A", "", " tiger", "."])) == [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "A"}),
        chunk({"content": " tiger"}),
        chunk({"content": "."}, finish_reason="stop", stop_reason=None),
        {
            **head,
            "choices": [],
            "usage": {
                "prompt_tokens": 310,
                "total_tokens": 326,
                "completion_tokens": 16,
                "prompt_tokens_details": {"cached_tokens": 32, "image_tokens": 256, "tiles": 1},
            },
        },
    ]


def test_every_role_comes_before_any_text():
    chunks = stream(ask(stream=True, n=2), pieces(["a", "b"], index=1), pieces(["c"], index=0))
    found = [(chunk["choices"][0]["index"], chunk["choices"][0]["delta"]) for chunk in chunks]
    role = {"role": "assistant", "content": ""}
    assert found == [(0, role), (1, role), (1, {"content": "a"}), (1, {"content": "b"}), (0, {"content": "c"})]


def test_usage_only_where_it_is_asked_for():
    assert not any("usage" in chunk for chunk in stream(ask(stream=True), pieces(["a", "b"])))
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = stream(ask(stream=True, stream_options=options), pieces(["a", "b"]))
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == [0, 1, 2, USAGE.completion_tokens]  # the role, though its token is known; each token; the whole


def test_ids_wait_for_text():
    chunks = stream(ask(stream=True, return_token_ids=True), pieces(["", "虎", "", ""]))
    assert chunks[0]["prompt_token_ids"] == [1, 2, 3]
    assert [chunk["choices"][0].get("token_ids") for chunk in chunks] == [None, [5, 6], [7, 8]]


def test_logprobs_of_every_token_come():
    scores = {token: score(-0.5, token - 4, "a") for token in range(5, 9)}
    chunks = stream(ask(stream=True, logprobs=True), pieces(["", "虎", "", ""], scores=scores))
    counts = [len((chunk["choices"][0]["logprobs"] or {"content": []})["content"]) for chunk in chunks]
    assert counts == [0, 2, 2]


def test_echo_follows_the_role():
    begun = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "It is "}]
    call = ask(stream=True, messages=begun, echo=True, continue_final_message=True)
    assert deltas(stream(call, pieces(["red"]))) == [
        {"role": "assistant", "content": ""}, {"content": "It is "}, {"content": "red"}
    ]  # fmt: skip


def test_hidden_reasoning_makes_no_chunks():
    call = ask(stream=True, include_reasoning=False)
    found = deltas(stream(call, pieces(["<think>", "Hm", "m.", "</think>", "A", "."])))
    assert found[1:] == [{"content": "A"}, {"content": "."}]


def test_tokens_of_the_reasoning_are_counted_where_there_is_some():
    """As OpenAI's API and vLLM report them: those from `<think>` up to `</think>`, shown or not."""
    thought, plain = ["<think>", "Hm", "m.", "</think>", "A", "."], ["A", "."]
    for include in (True, False):
        call = ask(stream=True, include_reasoning=include, n=2, stream_options={"include_usage": True})
        usage = stream(call, pieces(thought), pieces(plain, index=1))[-1]["usage"]
        readers = [AnswerReader(call.parts), AnswerReader(call.parts)]
        for piece in [*pieces(thought), *pieces(plain, index=1)]:
            readers[piece.index].add(piece.text)
        whole = chat_body(call, output("", ""), readers)["usage"]["completion_tokens_details"]
        assert usage["completion_tokens_details"] == whole == {"reasoning_tokens": 3}
    call = ask(stream=True, stream_options={"include_usage": True})
    assert "completion_tokens_details" not in stream(call, pieces(plain))[-1]["usage"]


def test_a_structure_that_broke_is_an_error():
    with pytest.raises(BrokenAnswer):
        stream(ask(stream=True), pieces(["{"], finish="error"))


def gathered(chunks):
    """The message that a client puts together."""
    message = {"content": "", "reasoning": "", "tool_calls": []}
    for delta in deltas(chunks):
        message["content"] += delta.get("content", "")
        message["reasoning"] += delta.get("reasoning", "")
        for call in delta.get("tool_calls", []):
            if "id" in call:
                assert (call["type"], call["index"]) == ("function", len(message["tool_calls"]))
                message["tool_calls"].append([call["function"]["name"], ""])
            message["tool_calls"][call["index"]][1] += call["function"]["arguments"]
    return message, chunks[-1]["choices"][0]["finish_reason"]


TEXTS = st.sampled_from(
    [f"<think>Hm.</think>\n\nI look.\n{CALL}\n{CALL}", CALL, "A tiger.", "", "<think>Hm", f"{CALL}<tool_call>{{}}"]
)


@settings(max_examples=200)
@given(text=TEXTS, cuts=ANY_CUT, parallel=st.booleans(), finish=st.sampled_from(["stop", "length"]))
def test_chunks_add_up_to_the_whole_answer(text, cuts, parallel, finish):
    call = ask(stream=True, tools=[LOOK], parallel_tool_calls=parallel)
    message, reason = gathered(stream(call, pieces(cut(text, cuts) or [""], finish)))
    choice = body_of(call, output(text, finish=finish))["choices"][0]
    whole = choice["message"]
    assert (message["content"], message["reasoning"]) == (whole["content"] or "", whole["reasoning"] or "")
    assert message["tool_calls"] == [list(made["function"].values()) for made in whole["tool_calls"]]
    assert reason == choice["finish_reason"]


def test_events_are_one_line_each():
    event = data_event({"a": "虎\n\r\u2028", "n": None})
    assert event == 'data: {"a":"虎\\n\\r\u2028","n":null}\n\n'.encode()
    assert json.loads(event[6:]) == {"a": "虎\n\r\u2028", "n": None}
    assert (
        named_event({"type": "response.created"}) == b'event: response.created\ndata: {"type":"response.created"}\n\n'
    )


def test_an_explanation_comes_behind_the_answer_where_it_is_asked_for():
    picture = PictureReport((640, 480), (2, 1), (True, False, True))
    taker = ChatStream(ask(stream=True, explain=True))
    chunks = [chunk for piece in pieces(["A"]) for chunk in taker.take(piece, USAGE)]
    assert not any("explanation" in chunk for chunk in chunks)
    [last] = taker.finish(output("A", pictures=(picture,)))
    [shown] = last["explanation"]["pictures"]
    assert shown == {"width": 640, "height": 480, "columns": 2, "rows": 1, "encoded": [True, False, True]}
    assert "usage" not in last
    assert body_of(ask(explain=True), output("A", pictures=(picture,)))["explanation"] == last["explanation"]
    assert "explanation" not in body_of(ask(), output("A"))


def test_boxes_come_with_the_end_of_an_answer_where_they_are_asked_for():
    call = ask(stream=True, return_boxes=True)
    assert not call.sampling.skip_special_tokens
    parts = ["It is <ref>a c", "at</ref><box>[[1,2,", "3,4]]</box>."]
    boxes = [{"label": "a cat", "corners": [1.0, 2.0, 3.0, 4.0]}]
    found = [delta["boxes"] for delta in deltas(stream(call, pieces(parts))) if "boxes" in delta]
    assert found == [boxes]
    assert body_of(call, output("".join(parts)))["choices"][0]["message"]["boxes"] == boxes
    assert "boxes" not in body_of(ask(), output("".join(parts)))["choices"][0]["message"]
