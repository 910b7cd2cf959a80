"""Which replica gets a request: least work, counting what a replica would save."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.equal.driver import LIMITS, prompt
from tilewise.remote.replicas import SEQUENCE, TILE, Recent, ReplicaRouter
from tilewise.sampling_params import SamplingParams

ROWS = LIMITS.tokens_per_tile
BLOCK = LIMITS.block_size


def finish(router: ReplicaRouter, *names: str) -> None:
    for name in names:
        router.ended(name)


def send(router: ReplicaRouter, *requests, able=(0, 1)) -> list[int]:
    return [router.choose(request, able) for request in requests]


def test_requests_that_share_nothing_are_shared_out_evenly():
    router = ReplicaRouter(LIMITS, 3)
    requests = [prompt(str(number), content=number, text=30) for number in range(9)]
    assert send(router, *requests, able=range(3)) == 3 * [0, 1, 2]


def test_a_long_prompt_weighs_as_much_as_several_short_ones():
    router = ReplicaRouter(LIMITS, 2)
    long, *short = prompt("long", 1, 200), *[prompt(str(number), number, 20) for number in range(2, 7)]
    assert send(router, long, *short) == [0, 1, 1, 1, 1, 0]
    assert router.views[0].in_flight == 200 + 20 + 2 * SEQUENCE
    assert router.views[1].in_flight == 4 * (20 + SEQUENCE)


def test_a_prompt_is_work_until_its_first_token_and_an_answer_until_its_last():
    router = ReplicaRouter(LIMITS, 2)
    send(router, prompt("a", 1, 100))
    assert router.views[0].in_flight == 100 + SEQUENCE
    for _ in range(2):
        router.began("a")
        assert router.views[0].in_flight == SEQUENCE
    for _ in range(2):
        router.ended("a")
        assert router.views[0].in_flight == 0
    router.began("a")
    assert router.views[0].in_flight == 0


def test_a_picture_goes_where_its_tiles_are():
    """However its question begins: tiles are known by their content."""
    router = ReplicaRouter(LIMITS, 2)
    picture = prompt("first", content=7, text=20, tiles=5)
    assert send(router, prompt("other", 1, 40), picture) == [0, 1]
    finish(router, "other", "first")
    again = replace(prompt("again", content=8, text=20, tiles=5), images=picture.images)
    assert send(router, again) == [1]
    assert router.views[1].in_flight == len(again.prompt_ids) + SEQUENCE, "no tile is encoded for it"


def test_a_prompt_goes_where_its_beginning_is():
    router = ReplicaRouter(LIMITS, 2)
    text = prompt("first", content=7, text=100)
    assert send(router, prompt("other", 1, 40), text) == [0, 1]
    finish(router, "other", "first")
    longer = replace(text, id="longer", prompt_ids=(*text.prompt_ids, 5, 6, 7))
    assert send(router, longer) == [1]
    assert router.views[1].in_flight == 103 - 100 // BLOCK * BLOCK + SEQUENCE


@pytest.mark.parametrize(
    "options", [{"prompt_logprobs": 1}, {"skip_reading_prefix_cache": True}], ids=lambda options: next(iter(options))
)
def test_a_request_that_reads_no_prefixes_is_not_drawn_to_them(options):
    router = ReplicaRouter(LIMITS, 2)
    text = prompt("first", content=7, text=100)
    assert send(router, prompt("other", 1, 40), text) == [0, 1]
    finish(router, "other", "first")
    assert send(router, replace(text, id="again", sampling=SamplingParams(**options))) == [0]


def test_prefixes_are_shared_within_one_salt_alone_and_only_where_they_are_kept():
    for limits, salt in ((LIMITS, "mine"), (replace(LIMITS, prefix_caching=False), None)):
        router = ReplicaRouter(limits, 2)
        text = prompt("first", content=7, text=100)
        assert send(router, prompt("other", 1, 40), text) == [0, 1]
        finish(router, "other", "first")
        assert send(router, replace(text, id="again", cache_salt=salt)) == [0]


@pytest.mark.parametrize(("answering", "goes_to"), [(2, 0), (3, 1)])
def test_tiles_and_prefixes_draw_as_far_as_they_save_work(answering, goes_to):
    """Six tiles save the work of encoding them and the prompt's beginning that of its blocks: two answers' worth."""
    router = ReplicaRouter(LIMITS, 2)
    picture = prompt("picture", content=7, text=9, tiles=6)
    assert send(router, picture) == [0]
    finish(router, "picture")
    assert 6 * TILE * ROWS + len(picture.prompt_ids) // BLOCK * BLOCK == 2 * SEQUENCE
    for number in range(answering):
        send(router, prompt(str(number), number, 1), able=[0])
        router.began(str(number))
    assert send(router, replace(picture, id="again")) == [goes_to]


def test_only_those_that_are_able_are_chosen():
    router = ReplicaRouter(LIMITS, 3)
    requests = [prompt(str(number), number, 20) for number in range(4)]
    assert send(router, *requests, able=[1, 2]) == [1, 2, 1, 2]


def test_a_replica_that_died_has_nothing_any_more():
    router = ReplicaRouter(LIMITS, 2)
    text, other = prompt("text", 7, 100), prompt("other", 1, 40)
    assert send(router, other, text) == [0, 1]
    router.lost(1)
    assert router.views[1].in_flight == 0
    router.began("text")
    router.ended("text")
    assert router.views[1].in_flight == 0
    router.ended("other")
    assert send(router, replace(text, id="again")) == [0]


def test_what_was_emptied_draws_nobody():
    picture = prompt("picture", content=7, text=100, tiles=4)
    for cache in ("prefix", "tiles"):
        router = ReplicaRouter(LIMITS, 2)
        assert send(router, prompt("other", 1, 40), picture) == [0, 1]
        finish(router, "other", "picture")
        router.forget(cache)
        (again,) = send(router, replace(picture, id="again"))
        assert again == 1, "the other of both is still there"
        finish(router, "again")
    router.forget("prefix")
    router.forget("tiles")
    assert send(router, replace(picture, id="at last")) == [0]


def test_the_longest_unused_is_forgotten_first_and_the_end_of_a_chain_before_its_beginning():
    recent = Recent(room=3)
    recent.add([b"a", b"b"])
    recent.add([b"c", b"d"])
    assert [name in recent for name in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    recent.add([b"a", b"e", b"f", b"g"])
    assert [name in recent for name in (b"a", b"e", b"f", b"g")] == [True, True, True, False]


def test_what_is_remembered_is_bounded_by_the_caches():
    limits = replace(LIMITS, num_blocks=9, tile_pages=4)
    router = ReplicaRouter(limits, 1)
    for number in range(20):
        send(router, prompt(str(number), number, 100, tiles=3), able=[0])
        router.ended(str(number))
    (view,) = router.views
    assert (len(view.blocks._digests), len(view.tiles._digests), router._requests) == (8, 4, {})
