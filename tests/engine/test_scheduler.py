"""The scheduler against a fake runner: chunks, tiles, preemption, priorities, ends."""

from __future__ import annotations

import pytest

from tests.engine.fake import FLASH, FakeRunner, assert_nothing_is_held, limits, request, run
from tilewise.engine.core import EngineCore
from tilewise.engine.scheduler import Scheduler
from tilewise.errors import TooLong
from tilewise.step import Limits
from tilewise.types import Request


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


@pytest.mark.parametrize(("budget", "alone"), [(0.5, None), (1, 1), (4, 4)])
def test_few_tiles_are_in_flight_and_little_is_encoded_while_something_decodes(budget, alone):
    """Less than a tile would bring nothing where nothing decodes."""
    sizes = limits(tile_pages=20, max_num_batched_tokens=64, tiles_in_flight=3, encode_budget=budget)
    runner = FakeRunner(sizes)
    core = EngineCore(runner, sizes)
    core.submit(request("talking", max_tokens=20))
    core.step()
    core.submit(request("picture", tiles=tuple(range(10, 18))))
    core.step()
    assert len(runner.plans[-1].encode) == 3
    assert [plan.encode_budget for plan in runner.plans] == [alone, budget]


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
    assert scheduler.commit(plan, runner.launch(plan)()) == []
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
