"""Lines of any length, in bounded memory, and digests that see all of them."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewise.jobs.source import line_digests, read_lines


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
