"""What of a line is asked, and what is said of lines that are not."""

from __future__ import annotations

import json

import pytest

from tests.jobs.lines import LIMIT, PATHS, request
from tilewise.jobs.source import InputLine
from tilewise.jobs.task import Fault, Task, read_task


def line(data: bytes | None, size: int = 0) -> InputLine:
    return InputLine(6, data, size, 1, 7)


def read(found: object) -> Task | Fault:
    return read_task(line(json.dumps(found).encode()), PATHS, LIMIT)


def test_a_request():
    assert read(request("a", "/tokenize")) == Task("a", "/tokenize", b'{"prompt": "a"}')
    windows = b"\xef\xbb\xbf" + json.dumps(request("猫")).encode() + b"\r"
    assert read_task(line(windows), PATHS, LIMIT) == Task("猫", "/v1/completions", rb'{"prompt": "\u732b"}')


@pytest.mark.parametrize("stream", [None, False])
def test_a_stream_that_is_none(stream):
    assert isinstance(read(request("a", body={"stream": stream})), Task)


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (b"{", "invalid_json_line", "Line 7 is not valid JSON"),
        (b"\xff", "invalid_json_line", "Line 7 is not valid JSON"),
        (b"[" * 100_000, "invalid_json_line", "Line 7 is not valid JSON"),
        (b"[1]", "invalid_json_line", "must be a JSON object with custom_id, method, url, body"),
        (None, "line_too_long", "Line 7 has 5000 bytes, the limit is 4096"),
    ],
)
def test_what_is_no_request(data, code, message):
    fault = read_task(line(data, 5000), PATHS, LIMIT)
    assert isinstance(fault, Fault)
    assert (fault.custom_id, fault.code) == (None, code)
    assert message in fault.message


@pytest.mark.parametrize(
    ("found", "code", "message"),
    [
        ({"custom_di": "a"}, "invalid_custom_id", "it is missing. Did you mean custom_di?"),
        (request(7), "invalid_custom_id", "custom_id must be a text that is not empty; got 7."),
        (request(""), "invalid_custom_id", "got ''"),
        (request("a", method="GET"), "invalid_method", "method must be \"POST\"; got 'GET'."),
        (request("a", method=None), "invalid_method", "got None"),
        (request("a", "/v1/chat/completion"), "invalid_url", "Did you mean /v1/chat/completions?"),
        (request("a", "/health"), "invalid_url", "one of /v1/chat/completions, /v1/completions, /tokenize"),
        (request("a", url=["/tokenize"]), "invalid_url", "got ['/tokenize']"),
        (request("a", body="hello"), "invalid_body", "body must be an object; got 'hello'."),
        (request("a", body={"stream": True}), "stream_not_possible", "Line 7: stream must be false"),
        (request("a", body={"stream": 1}), "stream_not_possible", "got 1"),
    ],
)
def test_what_is_wrong_with_a_request(found, code, message):
    fault = read(found)
    assert isinstance(fault, Fault)
    assert fault.code == code
    assert fault.custom_id == (None if code == "invalid_custom_id" else "a")
    assert message in fault.message
