"""The scheduler against a fake runner: chunks, tiles, preemption, ends, and nothing ever lost."""

from __future__ import annotations

import dataclasses
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.fake import FLASH, FakeRunner, computed_prompt, enrol, limits, request
from tilewise.engine.core import EngineCore
from tilewise.engine.scheduler import Scheduler
from tilewise.engine.sequence import SequenceState
from tilewise.errors import TooLong
from tilewise.step import Limits, Speculation
from tilewise.types import Request


def run(requests: list[Request], sizes: Limits) -> tuple[dict[str, list[int]], dict[str, str], FakeRunner]:
    """Tokens and finish reasons by request id."""
    runner = FakeRunner(sizes)
    core = EngineCore(runner, sizes)
    for item in requests:
        core.submit(item)
    tokens: dict[str, list[int]] = {item.id: [] for item in requests}
    reasons: dict[str, str] = {}
    while core.has_unfinished:
        for delta in core.step():
            tokens[delta.request_id].append(delta.token.token_id)
            if delta.finish_reason:
                reasons[delta.request_id] = delta.finish_reason
    assert_nothing_is_held(core._scheduler)
    return tokens, reasons, runner


def assert_nothing_is_held(scheduler: Scheduler) -> None:
    assert scheduler.kv.pool.num_free == scheduler.limits.num_blocks - 1
    assert sorted(scheduler._free_slots) == list(range(1, scheduler.limits.max_num_seqs + 1))
    assert not scheduler._in_flight


def test_a_prompt_longer_than_the_budget_is_computed_in_chunks():
    tokens, reasons, runner = run([request("a", text=39)], limits())
    assert [plan.work[0].count for plan in runner.plans] == [16, 16, 8, 1, 1, 1]
    assert tokens["a"] == [140, 141, 142, 143]
    assert reasons == {"a": "length"}


def test_decoding_sequences_ride_along_with_a_prefill():
    sizes = limits()
    runner = FakeRunner(sizes)
    core = EngineCore(runner, sizes)
    core.submit(request("short", text=3, max_tokens=8))
    core.step()
    core.submit(request("long", text=30))
    core.step()
    assert [work.count for work in runner.plans[-1].work] == [1, 15]


def test_a_chunk_ends_before_the_first_tile_that_is_not_encoded():
    _, _, runner = run([request("a", tiles=(7, 8))], limits())
    first, second = runner.plans[:2]
    assert [work.count for work in first.work] == [1]
    assert len(first.encode) == 2
    assert [use.position for use in second.work[0].tiles] == [1, 5]


def test_a_tile_shared_by_requests_is_encoded_once():
    _, _, runner = run([request("a", tiles=(7,)), request("b", tiles=(7,)), request("c", tiles=(7, 7))], limits())
    assert runner.tiles_encoded == 1


def test_tiles_beyond_the_pages_are_encoded_one_after_the_other():
    _, reasons, runner = run([request("a", tiles=tuple(range(10, 22)), text=2)], limits(tile_pages=1))
    assert runner.tiles_encoded == 12
    assert reasons == {"a": "length"}


def test_the_tile_budget_holds_while_something_decodes():
    sizes = limits(tile_pages=20, max_num_batched_tokens=64)
    runner = FakeRunner(sizes)
    core = EngineCore(runner, sizes)
    core.submit(request("talking", max_tokens=20))
    core.step()
    core.submit(request("picture", tiles=tuple(range(10, 18))))
    core.step()
    assert len(runner.plans[-1].encode) == sizes.tile_budget


def test_tiles_of_waiting_requests_are_encoded_ahead():
    sizes = limits(max_num_seqs=1, tile_pages=20)
    runner = FakeRunner(sizes)
    core = EngineCore(runner, sizes)
    core.submit(request("a", tiles=(1,), max_tokens=9))
    core.submit(request("b", tiles=(2,)))
    core.step()
    assert {job.digest[-1] for job in runner.plans[0].encode} == {1, 2}


def test_the_newest_is_preempted_and_gives_the_same_answer():
    alone, _, _ = run([request("a", text=12, max_tokens=12), request("b", text=12, max_tokens=12)], limits())
    tight = limits(num_blocks=10)
    tokens, _, runner = run([request("a", text=12, max_tokens=12), request("b", text=12, max_tokens=12)], tight)
    assert tokens == alone
    assert sum(len(plan.admissions) for plan in runner.plans) > 2, "nobody was preempted"


def test_a_stop_token_ends_a_sequence():
    tokens, reasons, _ = run([request("a", text=5, stop=(107,), max_tokens=9)], limits())
    assert tokens["a"] == [106, 107]
    assert reasons == {"a": "stop"}


def test_the_context_ends_a_sequence():
    tokens, reasons, _ = run([request("a", text=5, max_tokens=500)], limits(max_model_len=10))
    assert len(tokens["a"]) == 4
    assert reasons == {"a": "length"}


def test_a_prompt_that_can_never_fit_is_refused_with_the_limit():
    scheduler = Scheduler(limits(num_blocks=4))
    with pytest.raises(TooLong, match=r"13 tokens.*hold 12"):
        scheduler.add(request("a", text=12))


def test_the_longest_prompt_that_fits_runs_alone_to_its_one_token():
    """Three blocks hold 12 tokens: eleven of the prompt, and the one that is chosen behind them."""
    tokens, reasons, _ = run([request("a", text=10)], limits(num_blocks=4))
    assert (tokens, reasons) == ({"a": [111]}, {"a": "length"})


def test_a_refused_request_leaves_nothing_behind():
    core = EngineCore(FakeRunner(limits(num_blocks=4)), limits(num_blocks=4))
    core.submit(request("a"))
    with pytest.raises(TooLong):
        core.submit(request("b", text=12))
    assert core.load.waiting == 1
    while core.has_unfinished:
        core.step()
    assert_nothing_is_held(core._scheduler)


def test_a_request_that_fits_later_waits():
    """The second needs every block there is, so that it begins when the first has ended."""
    first, second = request("a", text=8, max_tokens=3, salt="a"), request("b", text=18, max_tokens=1, salt="b")
    tokens, _, runner = run([first, second], limits(num_blocks=6))
    assert (len(tokens["a"]), len(tokens["b"])) == (3, 1)
    admitted = [len(plan.admissions) for plan in runner.plans]
    assert admitted.index(1) == 0
    assert admitted[1:4] == [0, 0, 1]


def test_an_answer_ends_where_the_blocks_do():
    tokens, reasons, _ = run([request("a", text=5, max_tokens=500)], limits(num_blocks=4))
    assert len(tokens["a"]) == 12 - 6
    assert reasons == {"a": "length"}


@pytest.mark.parametrize("budget", [1, 3, 4, 5])
@pytest.mark.parametrize("pages", [1, 2, 6])
def test_a_step_may_be_shorter_than_a_picture_and_than_a_tile(budget, pages):
    sizes = limits(max_num_seqs=1, max_num_batched_tokens=budget, tile_pages=pages)
    tokens, reasons, runner = run([request("a", tiles=(1, 2, 3, 4), text=3)], sizes)
    assert reasons == {"a": "length"}
    assert tokens["a"] == [120, 121, 122, 123]
    assert runner.tiles_encoded == 4, "a tile that a chunk ends in was encoded again"
    assert runner.tokens_computed == 1 + 16 + 3 + 3


@pytest.mark.parametrize("overlap", [False, True])
def test_many_pictures_on_one_page_in_steps_shorter_than_a_tile(overlap):
    sizes = limits(max_num_seqs=2, max_num_batched_tokens=3, tile_pages=1)
    runner = FakeRunner(sizes)
    core = EngineCore(runner, sizes, overlap)
    for name, tiles in (("a", (1, 2, 3)), ("b", (4, 5, 6)), ("c", (1, 6))):
        core.submit(request(name, tiles=tiles))
    ends = []
    while core.has_unfinished:
        ends += [delta.request_id for delta in core.step() if delta.finish_reason]
    assert sorted(ends) == ["a", "b", "c"]
    assert_nothing_is_held(core._scheduler)


def test_aborting_waiting_running_and_finished_requests():
    sizes = limits(max_num_seqs=1)
    core = EngineCore(FakeRunner(sizes), sizes)
    for name in ("running", "waiting"):
        core.submit(request(name))
    core.step()
    for name in ("running", "waiting", "unknown"):
        core.abort(name)
    assert not core.has_unfinished
    assert_nothing_is_held(core._scheduler)


def test_a_token_in_flight_of_an_aborted_sequence_is_dropped():
    sizes = limits()
    scheduler, runner = Scheduler(sizes), FakeRunner(sizes)
    scheduler.add(request("a"))
    plan = scheduler.plan()
    scheduler.abort("a")
    assert scheduler.commit(plan, runner.launch(plan).wait()) == []
    assert_nothing_is_held(scheduler)


def test_a_flash_prompt_waits_for_its_scores_and_is_shortened():
    """Scores of 1, 2, 3, 4 are 0.37, 0.73, 0.09, 0.47: only 2 is above both thresholds, the quantile is 0.36."""
    _, _, runner = run([request("a", tiles=(1, 2, 3, 4))], limits(flash=FLASH))
    waiting, first = runner.plans[:2]
    assert len(waiting.encode) == 4
    assert not waiting.work
    assert [(use.position, use.first, use.rows) for use in first.work[0].tiles] == [
        (1, 0, 4),
        (5, 4, 1),
        (6, 0, 4),
        (10, 0, 4),
    ]


def test_a_flash_prompt_of_known_tiles_starts_at_once():
    sizes = limits(flash=FLASH)
    core = EngineCore(runner := FakeRunner(sizes), sizes)
    for name in ("a", "b"):
        core.submit(request(name, tiles=(1, 2), max_tokens=1))
        while core.has_unfinished:
            core.step()
    assert [len(plan.work) for plan in runner.plans] == [0, 1, 1]


def test_others_overtake_a_flash_prompt_that_waits_for_its_scores():
    sizes = limits(flash=FLASH)
    core = EngineCore(runner := FakeRunner(sizes), sizes)
    core.submit(request("picture", tiles=(1, 2)))
    core.submit(request("text"))
    core.step()
    assert [work.count for work in runner.plans[0].work] == [6]


def test_a_flash_prompt_with_more_tiles_than_pages_is_scored_page_by_page():
    _, reasons, runner = run([request("a", tiles=tuple(range(1, 13)), text=2)], limits(tile_pages=1, flash=FLASH))
    assert reasons == {"a": "length"}
    assert runner.tiles_encoded == 2 * 12  # once for its score and once for its rows


def test_saved_rows_are_reported_with_every_token():
    sizes = limits(flash=FLASH)
    core = EngineCore(FakeRunner(sizes), sizes)
    core.submit(request("a", tiles=(1, 2), max_tokens=2))
    saved = []
    while core.has_unfinished:
        saved += [delta.image_tokens_saved for delta in core.step()]
    assert saved == [3, 3]


def one_after_the_other(requests: list[Request], sizes: Limits) -> tuple[list[int], FakeRunner]:
    """Cached tokens of each request."""
    core = EngineCore(runner := FakeRunner(sizes), sizes)
    cached = []
    for item in requests:
        core.submit(item)
        deltas = []
        while core.has_unfinished:
            deltas += core.step()
        cached.append(deltas[-1].cached_tokens)
        assert_nothing_is_held(core._scheduler)
    return cached, runner


def test_an_equal_prompt_is_not_computed_again():
    cached, runner = one_after_the_other([request("a", text=11), request("b", text=11)], limits())
    assert cached == [0, 8]  # two blocks of four; the third holds the last token, which is always computed
    assert runner.tokens_computed == 12 + 3 + 4 + 3


def test_a_longer_prompt_and_answers_in_it_go_on_where_the_cache_ends():
    """The second prompt is the first with its answer, as in the next turn of a conversation."""
    first, second = request("a", text=11, max_tokens=5), request("b", text=0)
    second = dataclasses.replace(second, prompt_ids=(*first.prompt_ids, 112, 113, 114, 115, 9, 9))
    second = enrol(second)
    assert one_after_the_other([first, second], limits())[0] == [0, 16]


def test_prompts_that_differ_in_a_tile_share_what_is_before_it():
    requests = [request("a", tiles=(1, 2)), request("b", tiles=(1, 3)), request("c", tiles=(3, 1))]
    assert one_after_the_other(requests, limits(block_size=2))[0] == [0, 4, 0]


def test_a_cached_picture_is_not_encoded_again():
    """Nor if its page is gone: the prefix is matched before tiles are asked for."""
    first, other, again = request("a", tiles=(1, 2)), request("b", tiles=(5, 6)), request("c", tiles=(1, 2), text=6)
    cached, runner = one_after_the_other([first, other, again], limits(tile_pages=2))
    assert cached[2] == 12
    assert runner.tiles_encoded == 4


def test_other_salts_share_nothing():
    requests = [request(str(n), text=11, salt=salt) for n, salt in enumerate((None, "a", "b", "a", None))]
    assert one_after_the_other(requests, limits())[0] == [0, 0, 0, 8, 8]


def test_the_switch_turns_it_off():
    requests = [request("a", text=11), request("b", text=11)]
    assert one_after_the_other(requests, limits(prefix_caching=False))[0] == [0, 0]


def test_what_was_used_longest_ago_is_forgotten_first():
    """Five blocks: a and b leave two known ones each, c takes three; a, used again after b, stays."""
    a, b, c = (tuple(range(start, start + 11)) for start in (10, 30, 50))
    requests = [
        enrol(dataclasses.replace(request(str(n), max_tokens=1), prompt_ids=ids))
        for n, ids in enumerate((a, b, a, c, a, b))
    ]
    assert one_after_the_other(requests, limits(num_blocks=6))[0] == [0, 0, 8, 0, 8, 0]


def plain(name: str, first: int, length: int) -> Request:
    """A prompt of the ids from `first` on, and one token of answer."""
    return enrol(dataclasses.replace(request(name, max_tokens=1), prompt_ids=tuple(range(first, first + length))))


def test_the_end_of_a_sequence_is_forgotten_before_its_beginning():
    """Six blocks: a leaves three known ones and one of no worth, b takes that and the three that are left over."""
    requests = [plain("a", 10, 14), plain("b", 40, 15), plain("a", 10, 14)]
    assert one_after_the_other(requests, limits(num_blocks=7))[0] == [0, 0, 8]


def test_blocks_that_nobody_can_share_go_first():
    """Six blocks: a and b leave two known ones and one that is not full each; c takes those two."""
    requests = [plain("a", 10, 10), plain("b", 40, 10), plain("c", 70, 6), plain("a", 10, 10), plain("b", 40, 10)]
    assert one_after_the_other(requests, limits(num_blocks=7))[0] == [0, 0, 0, 8, 8]


def test_a_waiting_request_whose_picture_is_cached_asks_for_no_tile():
    sizes = limits(max_num_seqs=1, tile_pages=2)
    core = EngineCore(runner := FakeRunner(sizes), sizes)
    for item in (request("a", tiles=(1, 2)), request("b", tiles=(5, 6), max_tokens=9)):
        core.submit(item)
        while core.has_unfinished and item.id == "a":
            core.step()
    core.submit(request("c", tiles=(1, 2), text=6))
    while core.has_unfinished:
        core.step()
    assert runner.tiles_encoded == 4


def test_what_a_preempted_sequence_finds_again_was_not_cached_before():
    sizes, cached = limits(num_blocks=10), {}
    core = EngineCore(FakeRunner(sizes), sizes)
    for item in (plain("a", 10, 13), plain("b", 40, 13)):
        core.submit(dataclasses.replace(item, sampling=item.sampling.with_(max_tokens=12)))
    while core.has_unfinished:
        cached |= {delta.request_id: delta.cached_tokens for delta in core.step()}
    assert cached == {"a": 0, "b": 0}


def test_room_for_a_sequence_counts_the_blocks_that_sharing_takes():
    """Four blocks hold it, two of them known and unowned: sharing those two takes them out of the free ones."""
    sizes = limits(num_blocks=5)
    core = EngineCore(FakeRunner(sizes), sizes)
    core.submit(plain("a", 10, 9))
    while core.has_unfinished:
        core.step()
    scheduler = core._scheduler
    waiting = SequenceState.of(plain("b", 10, 15), 4, 64)
    prefix = scheduler.kv.known_prefix(waiting)
    assert len(prefix) == 2
    assert scheduler.kv.fits(waiting, prefix)
    taken = scheduler.kv.pool.take(1)
    assert not scheduler.kv.fits(waiting, prefix)
    scheduler.kv.pool.give_back(taken)


def test_running_requests_share_blocks_of_one_another():
    sizes = limits()
    core = EngineCore(runner := FakeRunner(sizes), sizes)
    core.submit(request("a", text=11, max_tokens=9))
    core.step()
    core.submit(request("b", text=11, max_tokens=2))
    deltas = [delta for _ in range(3) for delta in core.step() if delta.request_id == "b"]
    assert deltas[0].cached_tokens == 8
    assert runner.blocks[1][:2] == runner.blocks[2][:2]


def test_a_preempted_sequence_finds_its_blocks_again():
    tight = limits(num_blocks=10)
    found = {}
    for caching in (True, False):
        sizes = dataclasses.replace(tight, prefix_caching=caching)
        _, _, runner = run([request("a", text=12, max_tokens=12), request("b", text=3, max_tokens=20)], sizes)
        found[caching] = runner.tokens_computed
    assert found[True] < found[False]


def first_tokens(requests: list[Request], sizes: Limits) -> list[str]:
    """Requests in the order in which their first tokens come."""
    core = EngineCore(FakeRunner(sizes), sizes)
    for item in requests:
        core.submit(item)
    order: dict[str, None] = {}
    while core.has_unfinished:
        order |= dict.fromkeys(delta.request_id for delta in core.step())
    return list(order)


@pytest.mark.parametrize(("priorities", "expected"), [(True, ["b", "d", "a", "c"]), (False, ["a", "b", "c", "d"])])
def test_the_most_urgent_goes_first(priorities, expected):
    numbers = {"a": 5, "b": -1, "c": 5, "d": 0}
    requests = [request(name, text=3, priority=number) for name, number in numbers.items()]
    assert first_tokens(requests, limits(max_num_seqs=1, priorities=priorities)) == expected


def test_the_least_urgent_is_preempted():
    """b came later and is more urgent: when blocks run out, a gives way, and both end as they would alone."""
    tight = limits(num_blocks=10, priorities=True, prefix_caching=False)
    core = EngineCore(runner := FakeRunner(tight), tight)
    core.submit(request("a", text=12, max_tokens=12, priority=1))
    core.step()
    core.submit(request("b", text=12, max_tokens=12))
    tokens: dict[str, list[int]] = {"a": [113], "b": []}
    order = []
    while core.has_unfinished:
        for delta in core.step():
            tokens[delta.request_id].append(delta.token.token_id)
            order += [delta.request_id] if delta.finish_reason else []
    assert order == ["b", "a"]
    assert sum(len(plan.admissions) for plan in runner.plans) > 2
    assert tokens == {name: list(range(113, 125)) for name in "ab"}


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
    sizes = limits(speculation=Speculation(3, (1, 2)))
    steps = deltas_by_step([request("a", text=5, max_tokens=16)], sizes, stuttering=True)
    whole = deltas_by_step([request("a", text=5, max_tokens=16)], limits(), stuttering=True)
    assert list(chain.from_iterable(steps)) == list(chain.from_iterable(whole))
    assert len(whole) == 16
    assert max(map(len, steps)) == 4
    assert len(steps) < 12


def test_guesses_take_only_what_nobody_else_wants():
    """The budget goes to the prompt of b first; a's guesses get what is left."""
    sizes = limits(speculation=Speculation(5), max_num_batched_tokens=9)
    core = EngineCore(runner := FakeRunner(sizes), sizes)
    core.submit(request("a", text=3, max_tokens=30))
    core.step()
    assert [(work.count, work.drafts) for work in runner.plans[-1].work] == [(9, 5)]
    core.submit(request("b", text=20))
    core.step()
    assert [(work.count, work.drafts) for work in runner.plans[-1].work] == [(1, 0), (8, 0)]


def test_no_guess_goes_beyond_the_last_allowed_token():
    sizes = limits(speculation=Speculation(5))
    core = EngineCore(runner := FakeRunner(sizes), sizes)
    core.submit(request("a", text=3, max_tokens=3))
    core.step()
    assert runner.plans[-1].work[0].drafts == 2


def test_guesses_preempt_nobody():
    """Two sequences share all blocks but one: the first to guess takes that, the other guesses in what it has."""
    sizes = limits(num_blocks=8, speculation=Speculation(4), prefix_caching=False)
    core = EngineCore(runner := FakeRunner(sizes), sizes)
    core.submit(request("a", text=10, max_tokens=2))
    core.submit(request("b", text=10, max_tokens=2))
    while core.has_unfinished:
        core.step()
    assert core.counters.preemptions == 0
    assert sum(len(plan.admissions) for plan in runner.plans) == 2


def test_a_stop_token_among_right_guesses_ends_the_answer_there():
    sizes = limits(speculation=Speculation(5))
    core = EngineCore(FakeRunner(sizes), sizes)
    core.submit(request("a", text=5, max_tokens=20, stop=(108,)))
    deltas = []
    while core.has_unfinished:
        deltas += core.step()
    assert [delta.token.token_id for delta in deltas] == [106, 107, 108]
    assert [delta.finish_reason for delta in deltas] == [None, None, "stop"]
    assert_nothing_is_held(core._scheduler)


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
    tile_budget=st.integers(1, 3),
    flash=st.sampled_from([None, FLASH]),
    prefix_caching=st.booleans(),
    priorities=st.booleans(),
    speculation=st.sampled_from([None, Speculation(3, (1, 3)), Speculation(5, (2, 2)), Speculation(2)]),
)


@settings(max_examples=400)
@given(ARRIVALS, SIZES, st.booleans(), st.booleans())
def test_random_schedules_lose_nothing_and_answer_as_if_alone(arrivals, sizes, overlap, stuttering):
    check_schedule(arrivals, sizes, overlap, stuttering)


@pytest.mark.slow
@settings(max_examples=10_000)
@given(ARRIVALS, SIZES, st.booleans(), st.booleans())
def test_ten_thousand_random_schedules(arrivals, sizes, overlap, stuttering):
    check_schedule(arrivals, sizes, overlap, stuttering)


def check_schedule(arrivals, sizes, overlap, stuttering):
    runner = FakeRunner(sizes, stuttering)
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
