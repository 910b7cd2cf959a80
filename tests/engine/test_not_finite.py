"""What the scheduler does with numbers that are not finite: one sequence ends, and nothing of it is remembered."""

from __future__ import annotations

import random

import pytest

from tests.engine.fake import FakeRunner, assert_nothing_is_held, limits, request
from tilewise.engine.core import EngineCore
from tilewise.step import EncodedTile, EncodeJob, FlashRule, Handle, StepPlan, StepResult
from tilewise.types import Request, SequenceFailure

BAD_TILE = (7).to_bytes(16, "big")
FLASH = FlashRule(tokens=1, relative_threshold=0.3, absolute_threshold=0.5)


class BrokenRunner(FakeRunner):
    """Says of one request that its numbers are not finite from a position on, and of one tile that its rows are not."""

    def __init__(self, sizes, bad: Request | None = None, position: int = 0) -> None:
        super().__init__(sizes)
        self.bad, self.position = bad, position

    def launch(self, plan: StepPlan) -> Handle:
        result = super().launch(plan)()
        hit = [work for work in plan.work if self._is_bad(work.slot) and work.known_stop > self.position]
        sampled = {slot: () if slot in [work.slot for work in hit] else new for slot, new in result.sampled.items()}
        found = StepResult(sampled, result.encoded, not_finite={work.slot: "hidden states" for work in hit})
        return lambda: found

    def _is_bad(self, slot: int) -> bool:
        return self.bad is not None and self.admissions[slot].seed == self.bad.sampling.seed

    def _encode(self, job: EncodeJob) -> EncodedTile:
        found = super()._encode(job)
        return EncodedTile(found.digest, found.score, finite=job.digest != BAD_TILE)


def run(core: EngineCore, requests: list[Request]) -> tuple[dict[str, list[int]], dict[str, SequenceFailure]]:
    for item in requests:
        core.submit(item)
    tokens: dict[str, list[int]] = {item.id: [] for item in requests}
    failures: dict[str, SequenceFailure] = {}
    while core.has_unfinished:
        for delta in core.step():
            if isinstance(delta, SequenceFailure):
                assert delta.request_id not in failures
                failures[delta.request_id] = delta
            else:
                assert delta.request_id not in failures, "a token behind the end"
                tokens[delta.request_id].append(delta.token.token_id)
    assert_nothing_is_held(core._scheduler)
    return tokens, failures


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("position", [0, 3, 17, 26])
def test_a_sequence_ends_and_its_blocks_are_known_up_to_there(overlap: bool, position: int) -> None:
    bad = request("bad", text=24, max_tokens=8)
    others = [request(f"other {number}", text=9, max_tokens=8, salt=f"{number}") for number in range(2)]
    sizes = limits(max_num_batched_tokens=8, max_num_seqs=3)
    core = EngineCore(BrokenRunner(sizes, bad, position), sizes, overlap)
    tokens, failures = run(core, [others[0], bad, others[1]])
    assert list(failures) == ["bad"]
    assert failures["bad"].error.part == "decoder"
    assert len(tokens["bad"]) == max(0, position - 24)
    assert [len(tokens[item.id]) for item in others] == [8, 8]
    again = request("again", text=24, max_tokens=1)
    core._scheduler.add(again)
    known = len(core._scheduler.kv.known_prefix(core._scheduler.waiting[0]))
    assert known * sizes.block_size <= position
    assert known > 0 or position < sizes.block_size + 8
    assert core.counters.not_finite_decoder == 1


@pytest.mark.parametrize("flash", [None, FLASH])
@pytest.mark.parametrize("overlap", [False, True])
def test_a_tile_ends_all_that_need_it_and_leaves_its_page(overlap: bool, flash: FlashRule | None) -> None:
    sizes = limits(flash=flash, tile_pages=3)
    requests = [request("a", tiles=(1, 2)), request("b", tiles=(1, 7)), request("c", tiles=(7,)), request("d")]
    core = EngineCore(BrokenRunner(sizes), sizes, overlap)
    for _ in range(3):  # three pages: none may be lost
        tokens, failures = run(core, requests)
        assert sorted(failures) == ["b", "c"]
        assert "tile 2 of 2 of picture 1" in str(failures["b"].error)
        assert [len(tokens[name]) for name in "abcd"] == [4, 0, 0, 4]
        assert core._scheduler.tiles.peek(BAD_TILE) is None
        assert BAD_TILE not in core._scheduler.scores
    assert core.counters.not_finite_tower == 6


def test_random_failures_leave_nothing_behind() -> None:
    for seed in range(30):
        chance = random.Random(seed)
        sizes = limits(num_blocks=17, tile_pages=4)
        requests = [
            request(f"{seed}-{number}", text=chance.randint(1, 20), tiles=tuple(chance.sample(range(5, 10), 2)))
            for number in range(6)
        ]
        runner = BrokenRunner(sizes, chance.choice(requests), chance.randint(0, 20))
        tokens, failures = run(EngineCore(runner, sizes, overlap=bool(seed % 2)), requests)
        for item in requests:
            needs = any(tile.digest == BAD_TILE for image in item.images for tile in image.tiles)
            assert (item.id in failures) or not needs
            assert len(tokens[item.id]) == 4 or item.id in failures
