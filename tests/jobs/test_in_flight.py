"""How much is in flight, and in which order it comes out."""

from __future__ import annotations

import asyncio
import random

import pytest

from tilewise.jobs.feed import InFlight
from tilewise.jobs.input import InputLine
from tilewise.jobs.output import BatchResult


def line(number: int, size: int = 1) -> InputLine:
    return InputLine(number, b"x", size, number, number)


async def fill(in_flight: InFlight, chance: random.Random, most: int, numbers: list[int]) -> list[int]:
    """Lines enter while there is room, and leave in any order; what comes out."""
    inside: list[int] = []
    out: list[int] = []
    left = list(numbers)
    while left or inside:
        if left and (not inside or chance.random() < 0.7):
            entering = asyncio.ensure_future(in_flight.enter(line(left[0])))
            await asyncio.sleep(0)
            if entering.done():
                inside.append(left.pop(0))
                assert len(inside) <= most
                assert len(set(numbers[: len(numbers) - len(left)]) - set(out)) <= 17 * most
                continue
            entering.cancel()
        number = inside.pop(chance.randrange(len(inside))) if inside else None
        if number is not None:
            out += [result.number for result in in_flight.leave(BatchResult(number, 0, None, error={}))]
    return out


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("in_order", [True, False])
def test_never_more_than_may_be_and_in_order_if_asked(seed, in_order):
    chance = random.Random(seed)
    most, numbers = chance.randrange(1, 6), sorted(chance.sample(range(1, 99), 30))
    out = asyncio.run(fill(InFlight(most, in_order), chance, most, numbers))
    assert sorted(out) == numbers
    if in_order:
        assert out == numbers


def test_bytes_are_counted_and_one_large_line_may_pass_alone():
    async def check() -> None:
        in_flight = InFlight(9, False, most_bytes=10)
        await in_flight.enter(line(1, 50))
        second = asyncio.ensure_future(in_flight.enter(line(2, 1)))
        await asyncio.sleep(0)
        assert not second.done()
        assert [result.number for result in in_flight.leave(BatchResult(1, 0, None))] == [1]
        await second
        await in_flight.enter(line(3, 9))
        fourth = asyncio.ensure_future(in_flight.enter(InputLine(4, None, 10**9, 0, 4)))
        await asyncio.sleep(0)
        assert fourth.done(), "what is too long is not held, whatever its size"

    asyncio.run(check())


def test_in_order_a_long_answer_holds_up_no_others_until_many_wait():
    async def check() -> None:
        in_flight = InFlight(2, True)
        await in_flight.enter(line(1))
        for number in range(2, 2 + 16 * 2):
            await asyncio.wait_for(in_flight.enter(line(number)), 9)
            assert list(in_flight.leave(BatchResult(number, 0, None, error={}))) == []
        more = asyncio.ensure_future(in_flight.enter(line(99)))
        await asyncio.sleep(0)
        assert not more.done(), "results that wait are bounded"
        assert [result.number for result in in_flight.leave(BatchResult(1, 0, None, error={}))] == list(range(1, 34))
        await more

    asyncio.run(check())
