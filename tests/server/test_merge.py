"""Streams read as one: in order of arrival, to the first error, and closed when the reader leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from tilewise.server.service import merged


class Letters:
    """Gives its letters, then ends or fails; `closed` once it is."""

    def __init__(self, letters: str, error: Exception | None = None, at_close: Exception | None = None) -> None:
        self.closed = False
        self._letters, self._error, self._at_close = letters, error, at_close

    async def __call__(self) -> AsyncGenerator[str]:
        try:
            for letter in self._letters:
                yield letter
                await asyncio.sleep(0)
            if self._error:
                raise self._error
        finally:
            self.closed = True
            if self._at_close:
                raise self._at_close


def read(*sources: Letters, most: int = 99) -> list[tuple[int, str]]:
    async def all_of() -> list[tuple[int, str]]:
        found: list[tuple[int, str]] = []
        async with asyncio.timeout(30), aclosing(merged([source() for source in sources])) as items:
            async for item in items:
                found.append(item)
                if len(found) == most:
                    break
        return found

    return asyncio.run(all_of())


def test_all_of_each_in_its_order():
    found = read(Letters("ab"), Letters("cde"), Letters(""))
    assert sorted(found) == [(0, "a"), (0, "b"), (1, "c"), (1, "d"), (1, "e")]
    assert [letter for number, letter in found if number == 1] == ["c", "d", "e"]


@pytest.mark.parametrize("bad", [Letters("a", error=KeyError("no")), Letters("a", at_close=KeyError("no"))])
def test_an_error_of_any_kind_ends_all(bad: Letters):
    """One that comes of closing a stream, too, which nobody would wait for otherwise."""
    other = Letters("b" * 1000)
    with pytest.raises(KeyError, match="no"):
        read(bad, other)
    assert other.closed


def test_leaving_closes_all():
    sources = Letters("a" * 1000), Letters("b" * 1000)
    assert len(read(*sources, most=3)) == 3
    assert all(source.closed for source in sources)
