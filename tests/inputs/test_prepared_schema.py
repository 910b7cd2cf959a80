"""Patterns as they are followed. Hostile ones are long: what reads them more often than once does not end here."""

from __future__ import annotations

import pytest

from tilewise.inputs.prepared_schema import relaxed

LONG = 21_000


@pytest.mark.parametrize(
    ("pattern", "followed"),
    [
        (r"a(?=[)])b", "ab"),
        (r"[]a](?!x)", "[]a]"),
        (r"[^]\]](?<=y)z", r"[^]\]]z"),
        (r"[a[b]c](?<!x)", "[a[b]c]"),
        (r"(?=a(b)c)d", "d"),
        (r"(?=a\)b)c", "c"),
        (r"(a))(?=b)", "(a))"),
        ("(?=(", "(?=("),
        ("a\\", "a\\"),
    ],
)
def test_look_around_is_left_out_and_the_rest_stays(pattern: str, followed: str):
    assert relaxed(pattern)[0] == followed


@pytest.mark.parametrize("pattern", ["(?=" * LONG, "[" * LONG, "(?=a)" * LONG + "b", "(" * LONG + ")" * LONG])
def test_patterns_are_read_in_proportion_to_their_length(pattern: str):
    assert relaxed(pattern)[0] == pattern.replace("(?=a)", "")
