"""A runner without a model: it checks every plan against its own books, and samples tokens by a formula."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewise.step import Admission, EncodedTile, EncodeJob, FlashRule, Limits, StepPlan, StepResult, Work
from tilewise.types import ImageInput, Request, SampledToken, SamplingParams, Tile

TILE_TOKENS = 4
FLASH = FlashRule(tokens=1, relative_threshold=0.3, absolute_threshold=0.5)


def score(digest: bytes) -> float:
    """What the fake router says of a tile: depends on the tile alone, as a real one does."""
    return int.from_bytes(digest, "big") * 37 % 101 / 101


def limits(**changes: Any) -> Limits:
    sizes = {
        "max_num_seqs": 4,
        "max_model_len": 64,
        "max_num_batched_tokens": 16,
        "block_size": 4,
        "num_blocks": 33,
        "tokens_per_tile": TILE_TOKENS,
        "tile_pages": 6,
        "tile_budget": 2,
    }
    return Limits(**{**sizes, **changes})


def request(
    name: str, text: int = 5, tiles: tuple[int, ...] = (), max_tokens: int = 4, stop: tuple[int, ...] = ()
) -> Request:
    """A prompt of one leading token, a picture of the numbered tiles, then `text` tokens."""
    images = ()
    if tiles:
        made = tuple(Tile(number.to_bytes(16, "big"), np.zeros((1, 1, 3), np.uint8)) for number in tiles)
        images = (ImageInput(made, (len(made), 1), (1, 1), start=1),)
    prompt = (1, *[2] * (TILE_TOKENS * len(tiles)), *range(3, 3 + text))
    sampling = SamplingParams(max_tokens=max_tokens, stop_token_ids=list(stop))
    return Request(name, prompt, sampling, images)


@dataclass(frozen=True)
class Done:
    result: StepResult

    def wait(self) -> StepResult:
        return self.result


class FakeRunner:
    """Fails on any plan that reads what is not there or writes where it may not."""

    def __init__(self, sizes: Limits) -> None:
        self.limits = sizes
        self.admissions: dict[int, Admission] = {}
        self.blocks: dict[int, list[int]] = {}
        self.computed: dict[int, int] = {}
        self.pages: dict[int, bytes] = {}
        self.plans: list[StepPlan] = []
        self.tiles_encoded = 0
        self.closed = False

    def launch(self, plan: StepPlan) -> Done:
        self.plans.append(plan)
        for admission in plan.admissions:
            self._admit(admission)
        for grant in plan.grants:
            assert grant.first == len(self.blocks[grant.slot])
            self.blocks[grant.slot] += grant.block_ids
        self._check_totals(plan)
        for work in plan.work:
            self._check_work(work)
        for job in plan.encode:
            self.pages[job.page] = job.digest
            self.tiles_encoded += 1
        sampled = {work.slot: SampledToken(self.next_token(work)) for work in plan.work if work.samples}
        return Done(StepResult(sampled, tuple(map(self._encoded, plan.encode))))

    def _encoded(self, job: EncodeJob) -> EncodedTile:
        return EncodedTile(job.digest, score(job.digest) if self.limits.flash else None)

    def next_token(self, work: Work) -> int:
        """Depends on the position alone, so that a preempted sequence goes on as it would have."""
        return 100 + work.start + work.count

    def close(self) -> None:
        self.closed = True

    def _admit(self, admission: Admission) -> None:
        assert 1 <= admission.slot <= self.limits.max_num_seqs
        self.admissions[admission.slot] = admission
        self.blocks[admission.slot] = []
        self.computed[admission.slot] = 0

    def _check_totals(self, plan: StepPlan) -> None:
        assert sum(work.count for work in plan.work) <= self.limits.max_num_batched_tokens
        assert len({work.slot for work in plan.work}) == len(plan.work)
        used = list(itertools.chain.from_iterable(self.blocks[work.slot] for work in plan.work))
        assert len(set(used)) == len(used), "two sequences share a block"
        assert all(0 < block < self.limits.num_blocks for block in used)
        read = {use.page for work in plan.work for use in work.tiles}
        assert not read & {job.page for job in plan.encode}, "a page is overwritten while it is read"

    def _check_work(self, work: Work) -> None:
        """Every token once and in order, into blocks that were granted, image rows from the right pages."""
        stop = work.start + work.count
        assert work.count > 0
        assert work.start == self.computed[work.slot]
        assert stop <= len(self.blocks[work.slot]) * self.limits.block_size
        admission = self.admissions[work.slot]
        covered = set()
        for use in work.tiles:
            few = self.limits.flash.tokens if self.limits.flash else None
            assert (use.first, use.rows) in ((0, TILE_TOKENS), (TILE_TOKENS, few))
            covered |= set(range(use.position, use.position + use.rows))
            assert use.page in self.pages, "a page is read before anything was encoded into it"
        images = {i for i, token in enumerate(admission.token_ids[: admission.num_prompt]) if token == 2}
        assert images & set(range(work.start, stop)) <= covered, "an image token without its tile"
        self.computed[work.slot] = stop
