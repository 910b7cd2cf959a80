"""Requests without a seed draw from the engine's, in the order in which they come."""

from __future__ import annotations

from tests.engine.fake import FakeRunner, limits, request
from tilewise.engine.core import EngineCore
from tilewise.sampling_params import SamplingParams


def seeds(seed: int | None, names: str = "abc") -> list[int]:
    """Of the requests of these names; "s" has one of its own."""
    sizes = limits()
    core = EngineCore(runner := FakeRunner(sizes), sizes, seed=seed)
    for name in names:
        item = request(name)
        core.submit(item.with_(sampling=SamplingParams(seed=5, max_tokens=4)) if name == "s" else item)
    while core.has_unfinished:
        core.step()
    return [admission.seed for plan in runner.plans for admission in plan.admissions]


def test_the_same_seed_gives_each_request_the_same_draw_again():
    assert seeds(0) == seeds(0)
    assert len(set(seeds(0))) == 3
    assert seeds(0) != seeds(1)
    assert seeds(None) != seeds(None)


def test_a_seed_of_its_own_wins_and_takes_none_from_the_others():
    first, own, second = seeds(0, "asb")
    assert own == 5
    assert [first, second] == seeds(0, "ab")
