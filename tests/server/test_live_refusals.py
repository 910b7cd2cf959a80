"""Requests that are wrong, over real HTTP: each gets the error that clients know, and the next one its answer."""

from __future__ import annotations

import base64
import re

import pytest

from tests.served import Served
from tests.server.live import QUESTION, about_picture, about_video, ask_about, chat, error_of
from tilewise.assets import ImageAsset

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}


def data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


FIELDS = {
    "tools: none": (
        {"tools": []},
        "`tools` must not be an empty array. Either provide at least one tool or omit",
        "tools",
    ),
    "tool_choice alone": ({"tool_choice": "required"}, "When using `tool_choice`, `tools` must be set.", "tool_choice"),
    "top_logprobs alone": (
        {"top_logprobs": 2},
        "when using `top_logprobs`, `logprobs` must be set to true.",
        "top_logprobs",
    ),
    "too many logprobs": ({"logprobs": True, "top_logprobs": 50}, "greater than max allowed: 20", None),
    "stream_options alone": (
        {"stream_options": {}},
        "Stream options can only be defined when `stream=True`.",
        "stream_options",
    ),
    "prompt_logprobs of a stream": (
        {"prompt_logprobs": 1, "stream": True},
        "`prompt_logprobs` are not available when `stream=True`.",
        "prompt_logprobs",
    ),
    "two ends of a prompt": (
        {"continue_final_message": True, "add_generation_prompt": True},
        "Cannot set both `continue_final_message` and `add_generation_prompt` to True.",
        "continue_final_message",
    ),
    "two forms": (
        {"structured_outputs": {"json": {}, "regex": "a"}},
        "You can only use one kind of structured outputs",
        None,
    ),
    "a template": ({"chat_template": "{{ x }}"}, "Refused request with untrusted chat template", "chat_template"),
    "a misspelt field": ({"max_token": 3}, "Did you mean max_tokens?", "max_token"),
    "a wrong type": ({"seed": 1.5}, "seed: should be a valid integer", "seed"),
    "a value out of range": ({"temperature": -1}, "temperature must be a number >= 0", "temperature"),
    "no messages": ({"messages": []}, "it needs at least one message", "messages"),
    "an unknown role": ({"messages": [{"role": "usr", "content": ""}]}, "role must be one of", "messages[0].role"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_that_is_wrong(live: Served, name: str):
    fields, text, param = FIELDS[name]
    error = error_of(chat(live, **fields))
    assert text in error["message"]
    assert error["param"] == param
    assert error["type"] == "BadRequestError"


def test_a_context_that_cannot_hold_the_answer(live: Served):
    """Clients read the numbers out of these sentences."""
    error = error_of(chat(live, max_tokens=5000))
    prompt = chat(live).json()["usage"]["prompt_tokens"]
    assert error["message"].startswith(
        "This model's maximum context length is 1024 tokens. However, you requested 5000 output tokens and your prompt "
        f"contains {prompt} input tokens, for a total of {prompt + 5000} tokens. Please reduce the length of the input "
        "prompt or the number of requested output tokens."
    )
    assert error["param"] == "max_tokens"


def test_a_prompt_longer_than_the_context(live: Served):
    error = error_of(chat(live, messages=[{"role": "user", "content": "red " * 3000}]))
    assert error["message"].startswith("This model's maximum context length is 1024 tokens. However, you requested 2")


def test_an_unknown_model(live: Served):
    for path, body in (
        (CHAT, {"messages": [QUESTION]}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/responses", {"input": "a"}),
        ("/tokenize", {"prompt": "a"}),
        ("/detokenize", {"tokens": [65]}),
    ):
        error = error_of(live.client.post(path, json={**body, "model": "nobody"}), 404)
        assert error["message"].startswith("The model `nobody` does not exist.")
        assert error["type"] == "NotFoundError"


BODIES = {
    "nothing": (b"", "The body is not valid JSON"),
    "half an object": (b'{"messages": [', "The body is not valid JSON"),
    "a list": (b"[]", "The body must be a JSON object, got a list."),
    "no UTF-8": (b'{"messages": "\xff"}', "The body is not UTF-8 (byte 14)"),
    "half a pair": (b'{"messages": "\\ud800"}', "half of a surrogate pair"),
    "no number": (b'{"messages": [], "temperature": NaN}', "NaN is no number of JSON"),
    "a number beyond all": (b'{"messages": [], "temperature": 1e999}', "beyond the range of numbers"),
    "a long number": (b'{"messages": [], "seed": ' + b"1" * 5000 + b"}", "The body is not valid JSON"),
    "deep objects": (b'{"a":' * 100 + b"1" + b"}" * 100, "nests more than 64"),
    "very deep lists": (b'{"a":' + b"[" * 100_000, "nests more than 64"),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_no_request(live: Served, name: str):
    data, text = BODIES[name]
    error = error_of(live.client.post(CHAT, content=data, headers=JSON))
    assert text in error["message"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", None])
def test_a_media_type_that_is_not_json(live: Served, kind: str | None):
    headers = {} if kind is None else {"Content-Type": kind}
    error = error_of(live.client.post(CHAT, content=b"{}", headers=headers))
    assert "Unsupported Media Type: Only 'application/json' is allowed" in error["message"]


def test_parameters_of_the_media_type_do_not_matter(live: Served):
    answer = live.client.post(
        "/tokenize", content=b'{"prompt": "a"}', headers={"Content-Type": "Application/JSON; charset=utf-8"}
    )
    assert answer.json()["count"] == 1


PICTURES = {
    "bad base64": ("data:image/png;base64,@@@@", "not valid base64"),
    "no picture": (data_url("image/png", b"hello"), "not a picture"),
    "half a picture": (data_url("image/png", ImageAsset("counting").path.read_bytes()[:300]), "damaged or cut short"),
    "a text": ("data:image/png,abc", "not a picture that can be read (it is a text)"),
    "another scheme": ("ftp://example.org/a.png", "The URL must be either a HTTP, data or file URL"),
    "a file": ("file:///etc/passwd", "Cannot load local files without `--allowed-local-media-path`"),
    "nothing": ("", "The URL must be either a HTTP, data or file URL"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_that_cannot_be_had(live: Served, name: str):
    url, text = PICTURES[name]
    error = error_of(about_picture(live, url))
    assert text in error["message"]
    assert error["message"].startswith(f"{error['param']}: ")
    assert re.fullmatch(r"messages\[0\]\.content\[\d\]", error["param"])


def test_a_video_that_cannot_be_read(live: Served):
    cases = {b"hello": "not a video that can be read", b"\0\0\0\x18ftypmp42" + b"\0" * 40: "damaged or cut off"}
    for data, text in cases.items():
        assert text in error_of(about_video(live, data_url("video/mp4", data)))["message"]


@pytest.mark.parametrize("kind", ["audio_url", "input_audio", "file", "image_pil", "nothing"])
def test_a_part_of_a_kind_that_is_not_taken(live: Served, kind: str):
    error = error_of(ask_about(live, type=kind))
    assert error["param"] == "messages[0].content[0]"
