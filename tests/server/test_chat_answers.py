"""Whole answers, key by key as the guides print them."""

import json
from dataclasses import replace

import pytest

from tests.server.asking import LOOK, SERVED, ask, body_of, output, score
from tilewise.errors import BrokenAnswer

CALL = '<tool_call>\n{"name": "look", "arguments": {"where": "left"}}\n</tool_call>'


def answer(text, finish="stop", **fields):
    (choice,) = body_of(ask(**fields), output(text, finish=finish))["choices"]
    return choice["message"], choice["finish_reason"]


def test_the_body_is_laid_out_as_in_the_guides():
    body = body_of(ask(request_id="x"), output("The text in the illustration is: **a tiger**"))
    created = body["created"]
    assert json.dumps(body, ensure_ascii=False, separators=(",", ":")) == (
        f'{{"id":"chatcmpl-x","object":"chat.completion","created":{created},"model":"internvl3_5",'
        '"choices":[{"index":0,"message":{"role":"assistant",'
        '"content":"The text in the illustration is: **a tiger**","refusal":null,"annotations":null,"audio":null,'
        '"function_call":null,"tool_calls":[],"reasoning":null,"reasoning_content":null},"logprobs":null,'
        '"finish_reason":"stop","stop_reason":null,"token_ids":null}],"service_tier":null,"system_fingerprint":null,'
        '"usage":{"prompt_tokens":310,"total_tokens":326,"completion_tokens":16,'
        '"prompt_tokens_details":{"cached_tokens":32,"image_tokens":256,"tiles":1}},'
        '"prompt_logprobs":null,"prompt_token_ids":null,"kv_transfer_params":null}'
    )


def test_reasoning_has_both_its_names():
    message, _ = answer("<think>\nHm.\n</think>\n\nA tiger.")
    assert (message["content"], message["reasoning"], message["reasoning_content"]) == ("A tiger.", "Hm.", "Hm.")
    message, _ = answer("<think>Hm.</think>A tiger.", include_reasoning=False)
    assert (message["content"], message["reasoning"], message["reasoning_content"]) == ("A tiger.", None, None)
    message, finish = answer("<think>Hm", finish="length")
    assert (message["content"], message["reasoning"], finish) == (None, "Hm", "length")


def test_an_answer_without_content_has_reasoning_that_is_a_text():
    """Open WebUI reads the one in place of the other."""
    assert answer("")[0]["reasoning_content"] == ""
    hidden, _ = answer("<think>Hm", finish="length", include_reasoning=False)
    assert (hidden["content"], hidden["reasoning"], hidden["reasoning_content"]) == (None, None, "")
    assert answer(CALL, tools=[LOOK])[0]["reasoning_content"] is None


def test_reasoning_stays_text_where_it_is_not_told_apart():
    body = body_of(ask(replace(SERVED, reasoning=False)), output("<think>Hm.</think>A."))
    assert body["choices"][0]["message"]["content"] == "<think>Hm.</think>A."


def test_tool_calls():
    message, finish = answer(f"I look.\n{CALL}", tools=[LOOK])
    (call,) = message["tool_calls"]
    assert (message["content"], finish) == ("I look.", "tool_calls")
    assert call["id"].startswith("chatcmpl-tool-")
    assert (call["type"], call["function"]) == ("function", {"name": "look", "arguments": '{"where": "left"}'})
    assert answer(CALL, tools=[LOOK])[0]["content"] is None
    assert answer(CALL)[0]["tool_calls"] == []
    assert answer(CALL, finish="length", tools=[LOOK])[1] == "length"


def test_forced_calls():
    named = {"type": "function", "function": {"name": "look"}}
    message, finish = answer('{"where": "up"}', tools=[LOOK], tool_choice=named)
    assert (message["tool_calls"][0]["function"]["arguments"], finish) == ('{"where": "up"}', "stop")
    text = '[{"name": "look", "arguments": {"where": "up"}}, {"name": "look", "arguments": {"where": "]"}}]'
    message, finish = answer(text, tools=[LOOK], tool_choice="required")
    arguments = [call["function"]["arguments"] for call in message["tool_calls"]]
    assert (arguments, message["content"], finish) == (['{"where": "up"}', '{"where": "]"}'], None, "tool_calls")


def test_several_answers_and_echo():
    choices = body_of(ask(n=2), output("a", ""))["choices"]
    assert [(choice["index"], choice["message"]["content"]) for choice in choices] == [(0, "a"), (1, "")]
    begun = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "It is "}]
    body = body_of(ask(messages=begun, echo=True, continue_final_message=True), output("red."))
    assert body["choices"][0]["message"]["content"] == "It is red."


def test_logprobs():
    scores = [{5: score(-0.5, 1, "虎"), 9: score(-2.0, 2, "b")}, {9: score(-0.1, 1, "b"), 6: score(-20000.0, 7, "c")}]
    body = body_of(ask(logprobs=True, top_logprobs=1), output("虎c", logprobs=scores))
    first, second = body["choices"][0]["logprobs"]["content"]
    tiger = {"token": "虎", "logprob": -0.5, "bytes": [232, 153, 142]}
    assert first == {**tiger, "top_logprobs": [tiger]}
    assert (second["token"], second["logprob"]) == ("c", -9999.0)
    assert [top["token"] for top in second["top_logprobs"]] == ["b"]
    body = body_of(ask(logprobs=True, return_tokens_as_token_ids=True), output("虎c", logprobs=scores))
    first, second = body["choices"][0]["logprobs"]["content"]
    assert (first["token"], first["top_logprobs"], second["token"]) == ("token_id:5", [], "token_id:6")


def test_ids_and_prompt_scores():
    prompt = [None, {2: score(-1.5, 3, "x")}]
    body = body_of(ask(return_token_ids=True), output("a", prompt_logprobs=prompt))
    assert (body["prompt_token_ids"], body["choices"][0]["token_ids"]) == ([1, 2, 3], [5, 6])
    assert body["prompt_logprobs"] == [None, {"2": {"logprob": -1.5, "rank": 3, "decoded_token": "x"}}]


def test_a_structure_that_broke_is_an_error():
    with pytest.raises(BrokenAnswer, match="could not be followed"):
        answer("{", finish="error")
