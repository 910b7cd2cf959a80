"""Amounts as people write them."""

from __future__ import annotations

import pytest

from tilewise.units import in_bytes, read_amount, read_length


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8192", 8192),
        ("40K", 40960),
        ("40k", 40000),
        ("25.6k", 25600),
        ("1M", 2**20),
        ("1m", 10**6),
        ("2G", 2**31),
        (" 3t ", 3 * 10**12),
        ("1T", 2**40),
    ],
)
def test_letters_are_powers_of_1000_or_1024(text, expected):
    assert read_amount(text) == expected


@pytest.mark.parametrize("text", ["", "K", "1.5K", "1.5", "-3", "4 096", "40KB", "1e3", "auto", "9" * 400, "9" * 5000])
def test_anything_else_is_no_amount(text):
    with pytest.raises(ValueError, match="must be a whole number, or one such as 40K"):
        read_amount(text)


@pytest.mark.parametrize(("text", "expected"), [("auto", -1), ("-1", -1), ("40K", 40960)])
def test_a_length_may_be_what_fits(text, expected):
    assert read_length(text) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.00 KiB"),
        (2**20 * 3 // 2, "1.50 MiB"),
        (5 * 2**40, "5120.00 GiB"),
    ],
)
def test_bytes_in_the_unit_that_fits(count, expected):
    assert in_bytes(count) == expected
