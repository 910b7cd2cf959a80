"""What is not a JSON object of UTF-8 within limits never gets further."""

import json

import pytest

from tilewise.errors import InvalidRequest
from tilewise.server.exchange import MAX_DEPTH, check_media_type, parse_body


def nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


def test_an_object_comes_out_as_it_is():
    body = {"messages": [{"content": '图 😀 " \\ \n'}], "n": 2, "t": 0.5, "x": None, "y": True}
    assert parse_body(json.dumps(body).encode()) == body
    assert parse_body(json.dumps(body, ensure_ascii=False).encode()) == body


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not valid JSON"),
        (b'{"a": 1', "not valid JSON"),
        (b"{'a': 1}", "not valid JSON"),
        (b"[1]", "must be a JSON object, got a list"),
        (b'"a"', "must be a JSON object, got a string"),
        (b"null", "must be a JSON object, got null"),
        (b"true", "must be a JSON object, got a boolean"),
        (b'{"a": NaN}', "NaN is no number of JSON"),
        (b'{"a": -Infinity}', "-Infinity is no number of JSON"),
        (b'{"a": 1e999}', "1e999 is beyond the range of numbers"),
        (b'{"a": ' + 5000 * b"9" + b"}", "9999... has 5000 digits, which is beyond the range of numbers"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"\\udfff": 1}', "half of a surrogate pair"),
        (nested(MAX_DEPTH + 1), "nests more than"),
        (nested(100_000), "nests more than"),
        (b'{"a":' + b"[" * 200_000, "nests more than"),
    ],
)
def test_everything_else_is_refused(data, says):
    with pytest.raises(InvalidRequest, match=says):
        parse_body(data)


def test_the_deepest_that_is_taken():
    assert parse_body(nested(MAX_DEPTH))
    with pytest.raises(InvalidRequest, match="surrogate"):
        parse_body(nested(MAX_DEPTH).replace(b"1", b'"\\ud800"'))


@pytest.mark.parametrize("value", ["application/json", "Application/JSON; charset=utf-8", " application/json "])
def test_media_types_of_json(value):
    check_media_type(value)


@pytest.mark.parametrize("value", [None, "", "text/plain", "application/jsonl", "application/x-www-form-urlencoded"])
def test_other_media_types_are_refused(value):
    with pytest.raises(InvalidRequest, match="Unsupported Media Type: Only 'application/json' is allowed"):
        check_media_type(value)
