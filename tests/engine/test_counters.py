"""What an engine counts, and the line that it logs."""

from __future__ import annotations

import logging

from tests.engine.fake import FakeRunner, limits, request
from tilewise.engine.core import EngineCore
from tilewise.engine.counters import Counters, EngineLoad, StatsLog, stats_line


def counted(*requests, **sizes) -> Counters:
    """One request after the other."""
    sizes = limits(**sizes)
    core = EngineCore(FakeRunner(sizes), sizes)
    for item in requests:
        core.submit(item)
        while core.has_unfinished:
            core.step()
    return core.counters


def test_the_line_is_the_one_that_scripts_read():
    now = Counters(prompt_tokens=107, generation_tokens=16, prefix_cache_queries=214, prefix_cache_hits=96)
    assert stats_line(Counters(), now, 10.0, EngineLoad(3, 1, 0.125)) == (
        "Engine 000: Avg prompt throughput: 10.7 tokens/s, Avg generation throughput: 1.6 tokens/s, Running: 3 reqs, "
        "Waiting: 1 reqs, GPU KV cache usage: 12.5%, Prefix cache hit rate: 44.9%"
    )


def test_optional_parts_stand_where_scripts_expect_them():
    before = Counters(preemptions=2, mm_cache_queries=1)
    now = Counters(preemptions=5, mm_cache_queries=8, mm_cache_hits=2)
    line = stats_line(before, now, 10.0, EngineLoad(3, 1, 0.125))
    assert "Waiting: 1 reqs, Preemptions: 3, GPU KV cache usage: 12.5%" in line
    assert line.endswith("Prefix cache hit rate: 0.0%, MM cache hit rate: 25.0%")


def test_tokens_and_prefixes():
    found = counted(request("a", text=11), request("b", text=11))
    assert (found.prompt_tokens, found.generation_tokens) == (12 + 4, 8)
    assert (found.prefix_cache_queries, found.prefix_cache_hits) == (24, 8)


def test_a_picture_again_and_a_still_video_cost_no_tile_more():
    """A new question about a known picture encodes nothing, 32 equal frames encode one tile."""
    again = counted(request("a", tiles=(1, 2)), request("b", text=2, tiles=(1, 2)), prefix_caching=False)
    assert (again.tiles_encoded, again.tile_cache_queries, again.tile_cache_hits) == (2, 4, 2)
    still = counted(request("video", tiles=(7,) * 32), max_model_len=256, num_blocks=65)
    assert (still.tiles_encoded, still.tile_cache_queries, still.tile_cache_hits) == (1, 32, 31)


def test_preemptions():
    sizes = limits(num_blocks=10)
    core = EngineCore(FakeRunner(sizes), sizes)
    for name in "ab":
        core.submit(request(name, text=12, max_tokens=12))
    while core.has_unfinished:
        core.step()
        assert 0 <= core.load.kv_cache_usage <= 1
    assert core.counters.preemptions > 0
    assert core.load == EngineLoad(0, 0, 0.0)


def test_a_line_an_interval_and_silence_when_nothing_happens(caplog):
    log, counters = StatsLog(10.0, now=0.0), Counters()
    idle = EngineLoad(0, 0, 0.0)
    with caplog.at_level(logging.INFO, "tilewise"):
        for now, tokens in ((4.0, 5), (10.0, 20), (15.0, 20), (20.0, 20), (30.0, 20), (40.0, 20), (50.0, 30)):
            counters.generation_tokens = tokens
            log.tick(counters, idle, now)
    rates = [record.getMessage().split("generation throughput: ")[1].split()[0] for record in caplog.records]
    assert rates == ["2.0", "0.0", "1.0"]  # one line of zeros after the last token


def test_a_new_process_counts_from_zero_and_never_backwards(caplog):
    log = StatsLog(10.0, now=0.0, engine=3)
    with caplog.at_level(logging.INFO, "tilewise"):
        for now, tokens in ((10.0, 200), (20.0, 50)):
            log.tick(Counters(generation_tokens=tokens), EngineLoad(0, 0, 0.0), now)
    lines = [record.getMessage() for record in caplog.records]
    assert all(line.startswith("Engine 003: ") for line in lines)
    assert [line.split("generation throughput: ")[1].split()[0] for line in lines] == ["20.0", "5.0"]


def test_several_engines_together():
    one = Counters(prompt_tokens=5, generation_tokens=2, drafts=1, accepted_at=[3, 1])
    two = Counters(prompt_tokens=7, tiles_encoded=4, accepted_at=[1, 1, 1])
    assert Counters.total([one, two]) == Counters(12, 2, tiles_encoded=4, drafts=1, accepted_at=[4, 2, 1])
    assert Counters.total([]) == Counters()
    assert EngineLoad.total([EngineLoad(2, 1, 0.5), EngineLoad(1, 0, 0.25)]) == EngineLoad(3, 1, 0.375)
    assert EngineLoad.total([]) == EngineLoad(0, 0, 0.0)
