"""Names that have no effect: taken and named, unless they were meant to be others."""

from dataclasses import replace

import pytest
from PIL import Image

from tests.inputs.pictures import data_url, saved
from tests.served import Served
from tests.server.asking import LOOK, PICTURE, QUESTION, SERVED, under
from tests.server.live import chat, error_of
from tilewise.errors import InvalidField
from tilewise.ignored import Ignored
from tilewise.server.body import MAX_UNKNOWN
from tilewise.server.chat.call import chat_call
from tilewise.server.exchange import ignored_header
from tilewise.server.responses.call import response_call
from tilewise.server.tokenize import tokenize_call

STRICT = under(strict_fields=True)
CALLED = {"name": "look", "arguments": "{}"}
TAKEN = [
    ({"chat_id": "x"}, "chat_id"),
    ({"user": "x"}, "user"),
    ({"chat_id": None}, None),
    ({"user": None}, None),
    ({"messages": [{**QUESTION, "id": "m1"}]}, "messages.id"),
    ({"messages": [{**QUESTION, "name": "Ann"}]}, "messages.name"),
    ({"messages": [{**QUESTION, "id": None}]}, None),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "x"}}]}]},
     "messages.content.cache_control"),
    ({"messages": [{"role": "user", "content": [{**PICTURE, "image_url": {**PICTURE["image_url"], "alt": "tiger"}}]}]},
     "messages.content.image_url.alt"),
    ({"messages": [QUESTION, {"role": "assistant", "tool_calls": [{"index": 0, "type": None, "function": CALLED}]}]},
     "messages.tool_calls.index"),
    ({"stream": True, "stream_options": {"padding": True}}, "stream_options.padding"),
    ({"tools": [{**LOOK, "origin": "mcp"}], "tool_choice": "required"}, "tools.origin"),
    ({"tools": [{**LOOK, "function": {**LOOK["function"], "origin": "mcp"}}], "tool_choice": "required"},
     "tools.function.origin"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "name"), TAKEN)
def test_unknown_names_are_taken_and_named(fields, name):
    ignored = Ignored()
    chat_call({"messages": [QUESTION], **fields}, SERVED, ignored)
    assert ignored.names == (() if name is None else (name,))


@pytest.mark.parametrize("fields", [fields for fields, name in TAKEN if name not in (None, "user", "messages.name")])
def test_strict_fields_refuse_unknown_names(fields):
    with pytest.raises(InvalidField, match="has no field"):
        chat_call({"messages": [QUESTION], **fields}, STRICT, Ignored())


@pytest.mark.parametrize(
    ("fields", "param", "meant"),
    [
        ({"max_tokns": 1}, "max_tokns", "max_tokens"),
        ({"max_tokens_new": 1}, "max_tokens_new", "max_tokens"),
        ({"messages": [{**QUESTION, "contents": "a"}]}, "messages[0].contents", "content"),
        ({"stream": True, "stream_options": {"include_usages": 1}}, "stream_options.include_usages", "include_usage"),
        ({"tools": [{"type": "function", "function": {**LOOK["function"], "parameter": {}}}]},
         "tools.function.parameter", "parameters"),
    ],
)  # fmt: skip
def test_a_near_miss_is_refused_with_the_name_that_was_meant(fields, param, meant):
    with pytest.raises(InvalidField, match=f"Did you mean {meant}\\?") as caught:
        chat_call({"messages": [QUESTION], **fields}, SERVED, Ignored())
    assert caught.value.param == param


@pytest.mark.parametrize("form", ["structured_outputs", "response_format"])
def test_a_key_that_says_what_an_answer_looks_like_is_never_dropped(form):
    with pytest.raises(InvalidField, match=f"{form} has no field 'pattern'"):
        chat_call({"messages": [QUESTION], form: {"pattern": "a"}}, SERVED, Ignored())


def test_responses_name_theirs_as_well():
    ignored = Ignored()
    response_call({"input": "a", "chat_id": "x", "reasoning": {"depth": 1}}, SERVED, ignored)
    assert set(ignored.names) == {"chat_id", "reasoning.depth"}


def test_there_is_an_end_to_unknown_names():
    many = {f"zz{number}" * 9: 1 for number in range(MAX_UNKNOWN + 1)}
    with pytest.raises(InvalidField, match="more than 64 names that are not known"):
        chat_call({"messages": [QUESTION], **many}, SERVED, Ignored())
    same = [{**QUESTION, "id": str(number)} for number in range(MAX_UNKNOWN + 1)]
    chat_call({"messages": same}, SERVED, Ignored())


def test_the_header_is_short_and_safe():
    assert ignored_header(["a\r\nSet-Cookie: b", "c, d", "é"]) == "a__Set-Cookie__b, c__d, _"
    long = ignored_header(["n" * 80] * 64)
    assert len(long) < 1100
    assert long.endswith("n, and-52-more")


@pytest.mark.parametrize("stream", [False, True])
def test_answers_say_what_had_no_effect(live: Served, stream: bool):
    counted = 'tilewise:ignored_fields_total{engine="0",field="other",model_name="demo"}'
    before = live.client.get("/metrics").text
    answer = chat(live, chat_id="x", user="Ann", stream=stream)
    assert answer.status_code == 200
    assert answer.headers["x-tilewise-ignored"] == "chat_id, user"
    assert "x-tilewise-ignored" not in chat(live).headers
    assert live.logs("chat_id has no effect")
    assert sum("chat_id has no effect" in line for line in live.lines) == 1
    assert counted in live.client.get("/metrics").text
    assert counted not in before or stream


def test_frames_that_are_not_seen_are_named(live: Served):
    """A picture is the first frame of an animation; the rest of it changes no answer."""
    frames = [Image.new("RGB", (8, 8), (80 * index, 0, 0)) for index in range(3)]
    url = data_url("image/gif", saved(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Hi"}]
    answer = chat(live, messages=[{"role": "user", "content": parts}])
    assert answer.status_code == 200
    assert answer.headers["x-tilewise-ignored"] == "further_frames"
    assert 'field="further_frames"' in live.client.get("/metrics").text


def test_ids_that_stop_nothing_are_named(live: Served):
    answer = chat(live, stop_token_ids=[10**6])
    assert answer.status_code == 200
    assert answer.headers["x-tilewise-ignored"] == "stop_token_ids"


@pytest.mark.parametrize(
    ("field", "form"),
    [
        ("response_format", lambda schema: {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}),
        ("structured_outputs", lambda schema: {"json": schema}),
    ],
)
def test_keywords_that_no_schema_has(live: Served, field: str, form):
    told = chat(live, **{field: form({"type": "object", "propertyOrdering": ["a"]})})
    assert told.headers["x-tilewise-ignored"] == "schema.propertyOrdering"
    refused = error_of(chat(live, **{field: form({"type": "object", "requred": ["a"]})}))
    assert refused["param"] == field
    assert "Did you mean required?" in refused["message"]


def test_errors_say_it_as_well(live: Served):
    answer = chat(live, chat_id="x", n=0)
    assert error_of(answer)["param"] == "n"
    assert answer.headers["x-tilewise-ignored"] == "chat_id"


def test_special_tokens_of_messages_are_as_they_are():
    """vLLM's tokenizer adds nothing to a ChatML prompt either; with a start token it would stand there twice."""
    asked = {"messages": [QUESTION], "add_special_tokens": True}
    for take in (chat_call, tokenize_call):
        ignored = Ignored()
        take(asked, SERVED, ignored)
        assert ignored.names == ("add_special_tokens",)
        with pytest.raises(InvalidField, match="leave add_special_tokens out"):
            take(asked, replace(SERVED, starts=True), Ignored())
        take({**asked, "add_special_tokens": False}, replace(SERVED, starts=True), Ignored())
