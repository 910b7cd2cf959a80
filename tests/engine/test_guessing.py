"""Guesses against a fake runner: what they bring, and that they take nothing from others."""

from __future__ import annotations

from itertools import chain

from tests.engine.fake import FakeRunner, assert_nothing_is_held, limits, request
from tests.guesses import drafting, lookup
from tilewise.engine.core import EngineCore
from tilewise.step import Limits
from tilewise.types import Request


def deltas_by_step(requests: list[Request], sizes: Limits, stuttering: bool = False) -> list[list[int]]:
    """The new tokens of each step."""
    core = EngineCore(FakeRunner(sizes, stuttering), sizes)
    for item in requests:
        core.submit(item)
    steps = []
    while core.has_unfinished:
        steps.append([delta.token.token_id for delta in core.step()])
    assert_nothing_is_held(core._scheduler)
    return steps


def test_right_guesses_bring_several_tokens_a_step():
    """An answer of 100 101 102 103 104 over and over, but for a 150 or the like at every eleventh position."""
    sizes = limits(speculation=lookup(3, 1, 2))
    steps = deltas_by_step([request("a", text=5, max_tokens=16)], sizes, stuttering=True)
    whole = deltas_by_step([request("a", text=5, max_tokens=16)], limits(), stuttering=True)
    assert list(chain.from_iterable(steps)) == list(chain.from_iterable(whole))
    assert len(whole) == 16
    assert max(map(len, steps)) == 4
    assert len(steps) < 12


def test_guesses_take_only_what_nobody_else_wants():
    """The budget goes to the prompt of b first; a's guesses get what is left."""
    sizes = limits(speculation=drafting(5), max_num_batched_tokens=9)
    core = EngineCore(runner := FakeRunner(sizes), sizes)
    core.submit(request("a", text=3, max_tokens=30))
    core.step()
    assert [(work.count, work.drafts) for work in runner.plans[-1].work] == [(9, 5)]
    core.submit(request("b", text=20))
    core.step()
    assert [(work.count, work.drafts) for work in runner.plans[-1].work] == [(1, 0), (8, 0)]


def test_no_guess_goes_beyond_the_last_allowed_token():
    sizes = limits(speculation=drafting(5))
    core = EngineCore(runner := FakeRunner(sizes), sizes)
    core.submit(request("a", text=3, max_tokens=3))
    core.step()
    assert runner.plans[-1].work[0].drafts == 2


def test_guesses_preempt_nobody():
    """Two sequences share all blocks but one: the first to guess takes that, the other guesses in what it has."""
    sizes = limits(num_blocks=8, speculation=drafting(4), prefix_caching=False)
    core = EngineCore(runner := FakeRunner(sizes), sizes)
    core.submit(request("a", text=10, max_tokens=2))
    core.submit(request("b", text=10, max_tokens=2))
    while core.has_unfinished:
        core.step()
    assert core.counters.preemptions == 0
    assert sum(len(plan.admissions) for plan in runner.plans) == 2


def test_a_stop_token_among_right_guesses_ends_the_answer_there():
    sizes = limits(speculation=drafting(5))
    core = EngineCore(FakeRunner(sizes), sizes)
    core.submit(request("a", text=5, max_tokens=20, stop=(108,)))
    deltas = []
    while core.has_unfinished:
        deltas += core.step()
    assert [delta.token.token_id for delta in deltas] == [106, 107, 108]
    assert [delta.finish_reason for delta in deltas] == [None, None, "stop"]
    assert_nothing_is_held(core._scheduler)
