"""From bytes of a body to bytes of an answer, with the demo model in between."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace

import pytest
from PIL import Image

from tests.server.asking import LOOK, SERVED, body_of
from tests.server.test_chat_stream import gathered
from tilewise import LLM, ImageAsset
from tilewise.errors import InvalidRequest, TooLong
from tilewise.ignored import Ignored
from tilewise.inputs.request_builder import ChatOptions
from tilewise.outputs.group import AnswerGroup
from tilewise.server.chat.answers import ChatStream
from tilewise.server.chat.call import chat_call
from tilewise.server.completions.answers import completion_body
from tilewise.server.completions.call import completion_call
from tilewise.server.exchange import parse_body
from tilewise.server.tokenize import detokenize_body, tokenize_body, tokenize_call


@pytest.fixture(scope="module")
def llm():
    with LLM("demo") as found:
        yield found


@pytest.fixture(scope="module")
def sign():
    data = io.BytesIO()
    ImageAsset("stop_sign").pil_image.save(data, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What does the sign say?"}]
    return {"role": "user", "content": parts}


def drive(llm, group):
    """The pieces of a group's answers."""
    for request in group.requests:
        llm._core.submit(request)
    while not group.finished:
        for delta in llm._core.step():
            piece = group.take(delta)
            if piece is not None:
                yield piece
                if piece.engine_goes_on:
                    llm._core.abort(delta.request_id)


def chat(llm, body):
    """The whole answer and the chunks of one and the same run."""
    call = chat_call(parse_body(json.dumps(body).encode()), SERVED, Ignored())
    request = call.request(llm._prepare, llm._build.reader)
    group, stream = AnswerGroup(llm.inputs.tokenizer, request, llm._prepare.spec), ChatStream(call, request.prompt_ids)
    chunks = [chunk for piece in drive(llm, group) for chunk in stream.take(piece, group.usage)]
    return body_of(call, group.output()), [*chunks, *stream.finish(group.output())]


def test_a_picture_and_a_question(llm, sign):
    body, chunks = chat(llm, {"messages": [sign], "temperature": 0, "max_tokens": 20, "stream": True})
    usage = body["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0, "image_tokens": 208, "tiles": 13}
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    choice = body["choices"][0]
    assert (choice["message"]["content"] != "", choice["finish_reason"]) == (True, "stop")
    assert gathered(chunks)[0]["content"] == choice["message"]["content"]


def picture(width: int = 112, height: int = 112, **options) -> dict:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url, **options}}


def words(text: str) -> dict:
    return {"type": "text", "text": text}


def prompted(llm, *messages, **fields):
    call = chat_call({"messages": list(messages), **fields}, SERVED, Ignored())
    return call.request(llm._prepare, llm._build.reader)


WHOLE, ONE_TILE = 13, 1  # a picture of 1600 x 1200 pixels in 4 x 3 tiles and a thumbnail, and in one


@pytest.mark.parametrize(
    ("options", "fields", "tiles"),
    [
        ({}, {}, WHOLE),
        ({"max_dynamic_patch": 1}, {}, ONE_TILE),
        ({"max_dynamic_patch": None}, {}, WHOLE),
        ({}, {"max_dynamic_patch": 1}, ONE_TILE),
        ({}, {"mm_processor_kwargs": {"max_dynamic_patch": 1}}, ONE_TILE),
        ({"max_dynamic_patch": 12}, {"max_dynamic_patch": 1}, WHOLE),
        ({"detail": "medium"}, {}, WHOLE),
    ],
)
def test_a_picture_is_cut_as_it_or_its_request_says(llm, options, fields, tiles):
    question = {"role": "user", "content": [picture(1600, 1200, **options), words("What is it?")]}
    assert prompted(llm, question, **fields).num_tiles == tiles
    beside = {"role": "user", "content": [picture(1600, 1200, **options), picture(1600, 1200), words("What?")]}
    alone = ONE_TILE if options.get("max_dynamic_patch") == 1 else WHOLE
    assert prompted(llm, beside).num_tiles == alone + WHOLE


ASKED = {"role": "user", "content": "What is it?"}


@pytest.mark.parametrize(
    ("messages", "fields", "shown"),
    [
        (
            [{"role": "developer", "content": "A"}, {"role": "system", "content": [words("B")]}, ASKED],
            {},
            "<|im_start|>system\nA<|im_end|>\n<|im_start|>system\nB<|im_end|>\n<|im_start|>user\nWhat is it?",
        ),
        ([ASKED, {"role": "system", "content": "B"}], {}, "What is it?<|im_end|>\n<|im_start|>system\nB<|im_end|>"),
        ([{"role": "user", "content": "an <image>"}], {}, "<|im_start|>user\nan <image><|im_end|>"),
        (
            [{"role": "user", "content": "an <image>"}, {"role": "user", "content": [picture(), words("B")]}],
            {},
            "<|im_start|>user\nan <image><|im_end|>\n<|im_start|>user\n<image>\nB<|im_end|>",
        ),
        (
            [ASKED, {"role": "tool", "tool_call_id": "1", "content": [picture()]}],
            {},
            "<|im_start|>user\n<tool_response>\n<image>\n\n</tool_response><|im_end|>",
        ),
        (
            [{"role": "user", "content": [words("A"), picture(), words("B")]}],
            {"interleave_mm_strings": True},
            "<|im_start|>user\nA\n<image>\nB<|im_end|>",
        ),
        ([ASKED, {"role": "assistant", "content": "It is", "prefix": True}], {}, "<|im_start|>assistant\nIt is"),
        ([ASKED, {"role": "assistant", "content": "It is", "partial": True}], {}, "<|im_start|>assistant\nIt is"),
        (
            [ASKED, {"role": "assistant", "content": "It", "prefix": False}],
            {},
            "<|im_start|>assistant\nIt<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
)
def test_messages_stand_in_the_prompt_as_they_were_meant(llm, messages, fields, shown):
    prompt = prompted(llm, *messages, **fields).prompt
    assert shown in prompt
    assert prompt.endswith(shown) or messages[-1]["role"] != "assistant"


@pytest.mark.parametrize(("side", "kept"), [("left", [3, 4]), ("right", [1, 2]), (None, [3, 4])])
def test_the_side_of_a_prompt_that_is_cut(llm, side, kept):
    body = {"prompt": [1, 2, 3, 4], "truncate_prompt_tokens": 2, "truncation_side": side, "max_completion_tokens": 1}
    call = completion_call(body, SERVED, Ignored())
    assert call.sampling.max_tokens == 1
    assert list(call.requests(llm._prepare)[0].prompt_ids) == kept


def test_a_prompt_that_is_too_long_says_what_was_asked_for(llm):
    with pytest.raises(TooLong) as caught:
        prompted(llm, {"role": "user", "content": "word " * 6000}, max_tokens=40)
    assert caught.value.output_tokens == 40


def test_a_picture_as_it_was_prepared_offline(llm, sign):
    """The served prompt is that of LLM.chat."""
    call = chat_call({"messages": [sign]}, SERVED, Ignored())
    offline = llm._build.conversation([sign], call.sampling, ChatOptions(), Ignored())
    assert call.request(llm._prepare, llm._build.reader).prompt_ids == offline.prompt_ids


@pytest.mark.parametrize("parallel", [True, False])
def test_required_calls_are_calls(llm, parallel):
    turn = {"type": "function", "function": {"name": "turn", "parameters": {"$ref": "#/$defs/t", "$defs": {"t": {
        "type": "object", "properties": {"to": {"enum": ["left", "right"]}}, "required": ["to"],
        "additionalProperties": False}}}}}  # fmt: skip
    asked = {"messages": [{"role": "user", "content": "Turn."}], "tools": [turn], "tool_choice": "required"}
    body, chunks = chat(
        llm, {**asked, "temperature": 0, "max_tokens": 200, "parallel_tool_calls": parallel, "stream": True}
    )
    choice = body["choices"][0]
    calls = [(made["function"]["name"], made["function"]["arguments"]) for made in choice["message"]["tool_calls"]]
    assert calls
    assert len(calls) == 1 or parallel
    assert choice["finish_reason"] == "tool_calls" or parallel
    assert gathered(chunks)[0]["tool_calls"] == [list(call) for call in calls]
    if choice["finish_reason"] == "tool_calls":
        for name, arguments in calls:
            assert name == "turn"
            assert json.loads(arguments)["to"] in ("left", "right")


def test_asked_tokens_have_to_fit(llm):
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2048}
    with pytest.raises(TooLong) as caught:
        chat_call(body, SERVED, Ignored()).request(llm._prepare, llm._build.reader)
    assert (caught.value.limit, caught.value.output_tokens) == (2048, 2048)
    fits = {**body, "max_tokens": 2048 - caught.value.prompt_tokens}
    assert (
        chat_call(fits, SERVED, Ignored()).request(llm._prepare, llm._build.reader).sampling.max_tokens
        == fits["max_tokens"]
    )


def test_completions_echo_their_prompts(llm):
    call = completion_call(
        {"prompt": ["the red sign", [300, 301]], "max_tokens": 3, "echo": True, "logprobs": 1, "temperature": 0},
        SERVED,
        Ignored(),
    )
    outputs = []
    for request in call.requests(llm._prepare):
        group = AnswerGroup(llm.inputs.tokenizer, request, llm._prepare.spec)
        list(drive(llm, group))
        outputs.append(group.output())
    body = completion_body(call, outputs, lambda ids: llm.inputs.tokenizer.decode(ids, skip_special_tokens=False))
    first, second = body["choices"]
    assert first["text"].startswith("the red sign")
    assert first["logprobs"]["token_logprobs"][0] is None
    assert all(value <= 0 for value in first["logprobs"]["token_logprobs"][1:])
    shown = "".join(first["logprobs"]["tokens"])
    assert shown.startswith("the red sign")
    assert first["logprobs"]["text_offset"][1] == len(first["logprobs"]["tokens"][0])
    assert second["text"].startswith(llm.inputs.tokenizer.decode([300, 301]))


def test_tokenize_counts_pictures_and_detokenize_comes_back(llm, sign):
    body = tokenize_body(tokenize_call({"messages": [sign]}, SERVED, Ignored()), llm._prepare, llm._build.reader)
    request = chat_call({"messages": [sign]}, SERVED, Ignored()).request(llm._prepare, llm._build.reader)
    assert (body["tokens"], body["count"]) == (list(request.prompt_ids), len(request.prompt_ids))
    assert (body["max_model_len"], body["token_strs"]) == (2048, None)
    text = {"prompt": "the red sign", "return_token_strs": True}
    body = tokenize_body(tokenize_call(text, SERVED, Ignored()), llm._prepare, llm._build.reader)
    assert len(body["token_strs"]) == body["count"]
    assert detokenize_body({"tokens": body["tokens"]}, SERVED, llm.inputs.tokenizer, Ignored()) == {
        "prompt": "the red sign"
    }
    assert (
        tokenize_body(tokenize_call({"prompt": ""}, SERVED, Ignored()), llm._prepare, llm._build.reader)["count"] == 0
    )


def test_tokenize_takes_more_than_the_context(llm):
    body = tokenize_body(tokenize_call({"prompt": "red " * 5000}, SERVED, Ignored()), llm._prepare, llm._build.reader)
    assert body["count"] > 2048


def test_tokenize_follows_tools_and_endings(llm):
    asked = {"messages": [{"role": "user", "content": "Hi"}], "tools": [LOOK], "add_generation_prompt": False}
    body = tokenize_body(tokenize_call(asked, SERVED, Ignored()), llm._prepare, llm._build.reader)
    without_parser = tokenize_call(asked, replace(SERVED, tools=False), Ignored())
    assert tokenize_body(without_parser, llm._prepare, llm._build.reader) == body
    prompt = detokenize_body({"tokens": body["tokens"]}, SERVED, llm.inputs.tokenizer, Ignored())["prompt"]
    assert '"name": "look"' in prompt
    assert prompt.endswith("Hi<|im_end|>\n")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "Send either prompt or messages."),
        ({"prompt": "a", "messages": []}, "Send either prompt or messages."),
        ({"prompt": "a", "mm_processor_kwargs": {}}, "mm_processor_kwargs belongs to messages: leave it out"),
        ({"prompt": "a", "chat_template": "x"}, "--trust-request-chat-template is not set"),
    ],
)
def test_what_tokenize_refuses(body, says):
    with pytest.raises(InvalidRequest, match=says):
        tokenize_call(body, SERVED, Ignored())


def test_detokenize_knows_its_vocabulary(llm):
    with pytest.raises(InvalidRequest, match="tokens: token id 999999 is out of vocabulary"):
        detokenize_body({"tokens": [999999]}, SERVED, llm.inputs.tokenizer, Ignored())
