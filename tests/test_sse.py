"""Bytes to events, however they are cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewise.sse import read_events

DATA = ['{"text": "a\u2028b\x85c\x0bd"}', "", "两\n行", "[DONE]"]


def encoded(end: bytes) -> bytes:
    found = b": a comment" + end + end
    for number, data in enumerate(DATA):
        found += b"event: delta" + end + b"id: %d" % number + end
        for line in data.split("\n"):
            found += b"data:" + b" " * (number % 2) + line.encode() + end
        found += end
    return found


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@given(cuts=st.lists(st.integers(0, 400), max_size=30))
def test_events_do_not_depend_on_how_bytes_arrive(end, cuts):
    whole = encoded(end) + b":"  # a CR that comes last could still be half of a CRLF
    places = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    chunks = [whole[start:stop] for start, stop in itertools.pairwise(places)]
    assert list(read_events(chunks)) == DATA


def test_what_is_cut_short_is_no_event():
    assert list(read_events([b"data: whole\n\ndata: ha"])) == ["whole"]
    assert list(read_events([b"data: whole\n\ndata: half\n"])) == ["whole"]


def test_broken_characters_break_nothing():
    assert list(read_events([b"data: \xff!\n\n"])) == ["\ufffd!"]
