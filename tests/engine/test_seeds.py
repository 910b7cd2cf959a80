"""Requests without a seed draw from the engine's, in the order in which they come."""

from __future__ import annotations

from tests.engine.fake import limits, request
from tilewise.engine.scheduler import Scheduler
from tilewise.sampling_params import SamplingParams


def seeds(seed: int | None, names: str = "abc") -> list[int]:
    """What requests of these names draw from; "s" brings a seed of its own, 5."""
    scheduler = Scheduler(limits(), seed=seed)
    for name in names:
        sampling = SamplingParams(seed=5 if name == "s" else None, max_tokens=4)
        scheduler.add(request(name).with_(sampling=sampling))
    return [admission.seed for admission in scheduler.plan().admissions]


def test_the_same_seed_gives_each_request_the_same_draw_again():
    assert seeds(0) == seeds(0)
    assert len(set(seeds(0))) == 3
    assert seeds(0) != seeds(1)
    assert seeds(None) != seeds(None)


def test_a_seed_of_its_own_wins_and_takes_none_from_the_others():
    first, own, second = seeds(0, "asb")
    assert own == 5
    assert [first, second] == seeds(0, "ab")
