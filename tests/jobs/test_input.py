"""Lines of any length in bounded memory, what of them is asked and what is refused, and repeated ids."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.jobs.lines import LIMIT, PATHS, request
from tilewise.jobs.input import CustomIds, Fault, InputLine, Task, line_digests, read_lines, read_task


@given(st.lists(st.binary(max_size=40).map(lambda data: data.replace(b"\n", b"")), min_size=1), st.booleans())
def test_any_bytes_between_line_ends(tmp_path_factory, contents, ended):
    path = tmp_path_factory.mktemp("lines") / "in"
    path.write_bytes(b"\n".join(contents) + b"\n" * ended)
    lines = list(read_lines(path, 20))
    full = [(place, data) for place, data in enumerate(contents, 1) if data.strip()]
    assert [line.number for line in lines] == list(range(1, len(full) + 1))
    assert [line.place for line in lines] == [place for place, _ in full]
    assert [line.data for line in lines] == [data if len(data) <= 20 else None for _, data in full]
    assert [line.size for line in lines] == [len(data) for _, data in full]
    assert list(line_digests(path)) == [line.digest for line in lines]


def test_the_limit_is_of_the_line_without_its_end(tmp_path):
    path = tmp_path / "in"
    path.write_bytes(b"12345\n123456\n12345")
    assert [line.data for line in read_lines(path, 5)] == [b"12345", None, b"12345"]


def test_digests_of_long_lines_see_their_ends(tmp_path):
    path = tmp_path / "in"
    path.write_bytes(b"x" * 50 + b"1\n" + b"x" * 50 + b"2\n")
    first, second = read_lines(path, 8)
    assert first.digest != second.digest
    assert first.id == f"batch_req_1_{first.digest:016x}"


def test_a_line_that_is_too_long_is_never_held(tmp_path):
    path = tmp_path / "in"
    with path.open("wb") as file:
        for _ in range(64):
            file.write(b"x" * 2**20)
        file.write(b"\n{}\n")
    tracemalloc.start()
    lines = list(read_lines(path, 1000))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [(line.data, line.size) for line in lines] == [(None, 64 * 2**20), (b"{}", 2)]
    assert most < 8 * 2**20


def test_a_million_lines_cost_megabytes(tmp_path):
    path = tmp_path / "in"
    path.write_bytes(b"{}\n" * 200_000)
    tracemalloc.start()
    digests = line_digests(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(digests) == 200_000
    assert most < 16 * 200_000 + 2**20


@pytest.mark.parametrize(
    "data",
    [
        b"{}\n[]\n\n",
        b"{}\n\n\n[]",
        b"\n{}\n[]\n\n\n",
        b"{}\r\n\r\n[]\r\n\r\n",
        b"\xef\xbb\xbf\n{}\n[]",
        b"\xef\xbb\xbf{}\n" + b" " * 100 + b"\n[]\n \t",
        b"{}\n[]\n" + b" " * (3 * 2**20),
    ],
)
def test_blank_lines_are_none_wherever_they_stand(tmp_path, data):
    path = tmp_path / "in"
    path.write_bytes(data)
    lines = list(read_lines(path, 9))
    assert [json.loads((line.data or b"").decode("utf-8-sig")) for line in lines] == [{}, []]
    assert [line.number for line in lines] == [1, 2]
    assert len(line_digests(path)) == 2


def test_an_empty_file_has_no_lines(tmp_path):
    path = tmp_path / "in"
    path.touch()
    assert list(read_lines(path, 9)) == []


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


@given(st.lists(st.one_of(st.none(), st.sampled_from("abcdefgh\ud800"), st.text(max_size=2))))
def test_as_a_dict_has_it(names):
    found, first = CustomIds(), {}
    for number, name in enumerate(names, 1):
        if name is not None:
            assert found.first_use(name, number) == first.get(name)
            first.setdefault(name, number)


def test_many_in_few_bytes():
    count = 50_000
    tracemalloc.start()
    found = CustomIds()
    assert all(found.first_use(f"id-{number}", number) is None for number in range(1, count + 1))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 32 * count
    assert all(found.first_use(f"id-{number}", count + 1) == number for number in range(1, count + 1))
