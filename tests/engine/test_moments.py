"""Where a sequence's time goes, on a clock that moves by one for each plan and by ten while a step runs."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from tests.engine.fake import FLASH, FakeRunner, limits, request
from tilewise.engine.core import EngineCore
from tilewise.step import Limits, StepPlan
from tilewise.timing import EngineMoments, InputTiming, Timing
from tilewise.types import Request, TokenDelta

STEP = 10.0
"""Seconds that every step takes on its device."""


class SlowRunner(FakeRunner):
    """Its steps take time."""

    now = 0.0

    def launch(self, plan: StepPlan):
        self.now += STEP
        return super().launch(plan)


@dataclass
class Course:
    """A run, step by step."""

    sizes: Limits = field(default_factory=limits)
    deltas: dict[str, list[TokenDelta]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.runner = SlowRunner(self.sizes)
        self.core = EngineCore(self.runner, self.sizes, clock=lambda: self.runner.now)

    def submit(self, *requests: Request) -> None:
        for item in requests:
            self.core.submit(item)

    def wait(self, seconds: float) -> None:
        self.runner.now += seconds

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            for delta in self.core.step():
                self.deltas.setdefault(delta.request_id, []).append(delta)

    def finish(self) -> None:
        while self.core.has_unfinished:
            self.step()

    def timing(self, name: str, arrival: float = 0.0, inputs: InputTiming = InputTiming()) -> Timing:
        first, last = self.deltas[name][0], self.deltas[name][-1]
        assert first.moments is not None
        return Timing(arrival, first.moments.first_token, last.time, inputs, first.moments)


def parts(timing: Timing) -> tuple[float | None, ...]:
    return timing.queue, timing.encode, timing.prefill, timing.decode


def test_a_prompt_in_three_chunks_and_four_tokens():
    course = Course()
    course.submit(request("a", text=39))
    course.wait(3)
    course.finish()
    assert parts(course.timing("a")) == (3, 0, 3 * STEP, 3 * STEP)


def test_the_first_token_alone_brings_the_moments():
    course = Course()
    course.submit(request("a"))
    course.finish()
    assert [delta.moments is not None for delta in course.deltas["a"]] == [True, False, False, False]
    assert [delta.time for delta in course.deltas["a"]] == [10, 20, 30, 40]


def test_parts_add_up_to_the_whole():
    course = Course()
    course.wait(9)  # two of download, three of decoding, four of cutting
    course.submit(request("a", tiles=(1, 2), text=30))
    course.wait(5)
    course.finish()
    timing = course.timing("a", arrival=0.0, inputs=InputTiming(2, 3, 4))
    assert (timing.queue, timing.prefill, timing.decode) == (5, 4 * STEP, 3 * STEP)
    assert timing.total == timing.inputs.total + timing.queue + timing.prefill + timing.decode
    assert timing.total == timing.inputs.total + timing.queue + timing.inference
    assert timing.time_to_first_token == timing.inputs.total + timing.queue + timing.prefill


def test_waiting_for_tiles_lies_within_queue_and_prefill():
    """Its first token is computed while its tiles are encoded, the rest in the step after that."""
    course = Course()
    course.submit(request("a", tiles=(1, 2)))
    course.finish()
    assert parts(course.timing("a")) == (0, STEP, 2 * STEP, 3 * STEP)


def test_tiles_that_are_encoded_one_after_the_other_are_waited_for_until_the_last():
    course = Course(limits(tile_pages=1))
    course.submit(request("a", tiles=(1, 2, 3), text=2))
    course.finish()
    assert course.timing("a").encode == 5 * STEP  # the page is free again a step later


def test_cached_tiles_are_not_waited_for():
    course = Course(limits(prefix_caching=False))
    course.submit(request("a", tiles=(1, 2)))
    course.finish()
    course.submit(request("b", tiles=(2, 1)))
    course.finish()
    assert parts(course.timing("b")) == (0, 0, STEP, 3 * STEP)


def test_a_known_prefix_needs_no_tiles():
    course = Course()
    course.submit(request("a", tiles=(1, 2), text=12))
    course.finish()
    course.submit(request("other", tiles=(3, 4, 5, 6, 7, 8)))  # takes all pages
    course.finish()
    course.submit(request("b", tiles=(1, 2), text=12))
    course.finish()
    assert course.timing("b").encode == 0
    assert course.deltas["b"][0].cached_tokens >= 9


def test_who_waits_for_the_tile_of_another_waits_too():
    course = Course()
    course.submit(request("a", tiles=(1,)), request("b", tiles=(1,)))
    course.finish()
    assert course.timing("a").encode == course.timing("b").encode == STEP


def test_a_waiting_request_queues_until_its_first_work():
    course = Course(limits(max_num_seqs=1))
    course.submit(request("a", max_tokens=4), request("b", tiles=(5,), max_tokens=1))
    course.finish()
    assert parts(course.timing("a")) == (0, 0, STEP, 3 * STEP)
    # Its tile was encoded ahead, beside the first step.
    assert parts(course.timing("b")) == (4 * STEP, STEP, STEP, 0)


def test_a_preempted_request_queues_once():
    course = Course(limits(num_blocks=10))
    course.submit(request("a", text=12, max_tokens=12), request("b", text=12, max_tokens=12, salt="b"))
    course.finish()
    assert course.core.counters.preemptions > 0
    assert sum(course.deltas[name][-1].preemptions for name in "ab") == course.core.counters.preemptions
    for name in "ab":
        timing = course.timing(name)
        assert timing.queue == 0 or name == "b"
        assert timing.total == timing.queue + timing.prefill + timing.decode
    assert course.timing("b").decode > 11 * STEP  # what it was away is part of it


def test_an_aborted_request_leaves_the_times_of_others_alone():
    course = Course(limits(max_num_seqs=1))
    course.submit(request("a", max_tokens=9), request("never", tiles=(1,)), request("b"))
    course.step(2)
    course.core.abort("a")
    course.core.abort("never")
    course.finish()
    assert "never" not in course.deltas
    assert [delta.time for delta in course.deltas["a"]] == [10, 20]
    assert parts(course.timing("b")) == (2 * STEP, 0, STEP, 3 * STEP)


def test_a_request_aborted_in_the_middle_of_its_prompt_has_no_times():
    course = Course()
    course.submit(request("a", text=39))
    course.step()
    course.core.abort("a")
    course.finish()
    assert course.deltas == {}


def test_a_flash_prompt_waits_for_its_scores_in_the_queue():
    course = Course(limits(flash=FLASH))
    course.submit(request("a", tiles=(1, 2)))
    course.finish()
    assert parts(course.timing("a"))[:2] == (STEP, STEP)


def test_overlapped_steps_count_their_flight():
    sizes = limits()
    runner = SlowRunner(sizes)
    core = EngineCore(runner, sizes, overlap=True, clock=lambda: runner.now)
    core.submit(request("a", max_tokens=2))
    deltas = []
    while core.has_unfinished:
        deltas += core.step()
    assert deltas[0].moments == EngineMoments(queued=0, scheduled=0, first_token=2 * STEP)


@pytest.mark.parametrize(
    ("moments", "expected"),
    [
        (EngineMoments(1), 0),
        (EngineMoments(1, wanted=2), 0),
        (EngineMoments(1, wanted=2, encoded=5), 3),
        (EngineMoments(1, wanted=2, scheduled=9), 7),  # another request had computed them meanwhile
        (EngineMoments(1, wanted=4, scheduled=3), 0),
    ],
)
def test_the_wait_for_tiles(moments, expected):
    assert moments.encode == expected


def test_what_is_not_reached_has_no_length():
    timing = Timing(1.0)
    assert (timing.total, timing.time_to_first_token, timing.queue, timing.decode) == (None, None, None, None)
    started = Timing(1.0, 5.0, engine=EngineMoments(2.0, scheduled=3.0, first_token=5.0))
    assert (started.queue, started.prefill, started.decode, started.inference) == (1.0, 2.0, None, None)
