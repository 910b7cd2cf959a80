"""Prefix caching against a fake runner: who shares what, what goes first, and what preemption finds again."""

from __future__ import annotations

import dataclasses

from tests.engine.fake import FakeRunner, assert_nothing_is_held, enrol, limits, request, run
from tilewise.engine.core import EngineCore
from tilewise.engine.kv_cache import BlockPool
from tilewise.engine.sequence import SequenceState
from tilewise.step import Limits
from tilewise.types import Request


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


def test_nothing_is_forgotten_while_a_block_has_an_owner():
    pool = BlockPool(4)
    [first] = pool.take(1)
    pool.remember(first, b"a")
    assert not pool.forget_all()
    assert pool.match([b"a"]) == [first]
    pool.give_back([first])
    assert pool.match([b"a"]) == [first], "it is kept without an owner"
    assert pool.forget_all()
    assert pool.match([b"a"]) == []
    assert pool.num_free == 3
