"""Random schedules against a fake runner: nothing is lost, and everybody answers as if alone."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.fake import FLASH, FakeRunner, assert_nothing_is_held, computed_prompt, limits, request
from tests.guesses import drafting, lookup
from tilewise.engine.core import EngineCore

ARRIVALS = st.lists(
    st.tuples(
        st.integers(0, 12),  # step of arrival
        st.integers(1, 20),  # text tokens
        st.lists(st.integers(0, 9), max_size=5),  # tiles
        st.integers(1, 10),  # max_tokens
        st.one_of(st.none(), st.integers(0, 20)),  # step of abort
        st.sampled_from([None, None, "salt"]),
        st.integers(0, 2),  # priority
    ),
    min_size=1,
    max_size=8,
)
SIZES = st.builds(
    limits,
    max_num_seqs=st.integers(1, 4),
    max_num_batched_tokens=st.integers(4, 24),
    num_blocks=st.integers(16, 24),
    block_size=st.sampled_from([3, 4, 16]),
    tile_pages=st.integers(1, 6),
    encode_budget=st.integers(1, 3),
    tiles_in_flight=st.integers(1, 5),
    flash=st.sampled_from([None, FLASH]),
    prefix_caching=st.booleans(),
    priorities=st.booleans(),
    speculation=st.sampled_from([None, lookup(3, 1, 3), lookup(5, 2, 2), drafting(2)]),
)

LATENESS = st.none() | st.integers(0, 999).map(random.Random)
"""When tiles are ready: with the step of their plan, or later and in any order."""


@settings(max_examples=400)
@given(ARRIVALS, SIZES, st.booleans(), st.booleans(), LATENESS)
def test_random_schedules_lose_nothing_and_answer_as_if_alone(arrivals, sizes, overlap, stuttering, chance):
    check_schedule(arrivals, sizes, overlap, stuttering, chance)


@pytest.mark.slow
@settings(max_examples=10_000)
@given(ARRIVALS, SIZES, st.booleans(), st.booleans(), LATENESS)
def test_ten_thousand_random_schedules(arrivals, sizes, overlap, stuttering, chance):
    check_schedule(arrivals, sizes, overlap, stuttering, chance)


def check_schedule(arrivals, sizes, overlap, stuttering, chance):
    runner = FakeRunner(sizes, stuttering, chance)
    core = EngineCore(runner, sizes, overlap)
    expected, got, aborted = {}, {}, set()
    for step in range(2000):
        for number, (arrival, text, tiles, max_tokens, abort_at, salt, priority) in enumerate(arrivals):
            name = str(number)
            if arrival == step:
                item = request(name, text, tuple(tiles), max_tokens, salt=salt, priority=priority)
                core.submit(item)
                length = computed_prompt(item, sizes)
                room = min(sizes.max_model_len, (sizes.num_blocks - 1) * sizes.block_size) - length
                expected[name] = [runner.token(length + i) for i in range(min(max_tokens, room))]
                got[name] = []
            if abort_at == step and name in got:
                core.abort(name)
                aborted.add(name)
        if step > 12 and not core.has_unfinished:
            break
        for delta in core.step():
            got[delta.request_id].append(delta.token.token_id)
        # What is planned counts on one token of a step with guesses, and what came of it is exact again.
        assert all(sequence.num_pending in (0, 1) for sequence in core._scheduler.running)
    assert not core.has_unfinished, "starved"
    assert_nothing_is_held(core._scheduler)
    for name, tokens in got.items():
        if name in aborted:
            assert tokens == expected[name][: len(tokens)]
        else:
            assert tokens == expected[name]
