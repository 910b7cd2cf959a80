"""Lines of any length, in bounded memory, and digests that see all of them."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from tilewise.jobs.source import read_lines, survey


@given(st.lists(st.binary(max_size=40).map(lambda data: data.replace(b"\n", b"")), min_size=1), st.booleans())
def test_any_bytes_between_line_ends(tmp_path_factory, contents, ended):
    path = tmp_path_factory.mktemp("lines") / "in"
    path.write_bytes(b"\n".join(contents) + b"\n" * (ended or not contents[-1]))
    lines = list(read_lines(path, 20))
    assert [line.number for line in lines] == list(range(1, len(contents) + 1))
    assert [line.data for line in lines] == [data if len(data) <= 20 else None for data in contents]
    assert [line.size for line in lines] == [len(data) for data in contents]
    assert list(survey(path)) == [line.digest for line in lines]


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
    digests = survey(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(digests) == 200_000
    assert most < 16 * 200_000 + 2**20


def test_an_empty_file_has_no_lines(tmp_path):
    path = tmp_path / "in"
    path.touch()
    assert list(read_lines(path, 9)) == []
