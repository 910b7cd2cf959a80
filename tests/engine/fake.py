"""A runner without a model: it checks every plan against its own books, and samples tokens by a formula.

What stands for the keys and values of a token is the hash of everything they depend on: its id, or the row of a tile,
and all tokens before it. A block shared with the wrong sequence, or not computed, shows at once.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np

from tilewise.engine.core import EngineCore
from tilewise.engine.scheduler import Scheduler
from tilewise.sampling_params import SamplingParams
from tilewise.step import Admission, EncodedTile, EncodeJob, FlashRule, Handle, Limits, StepPlan, StepResult, Work
from tilewise.types import ImageInput, Request, SampledToken, Tile

TILE_TOKENS = 4
_BY_SEED: dict[int, Request] = {}
"""Every request made here: an admission does not say whose it is, but for the seed."""
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
        "encode_budget": 2,
        "tiles_in_flight": 8,
    }
    return Limits(**{**sizes, **changes})


def request(
    name: str,
    text: int = 5,
    tiles: tuple[int, ...] = (),
    max_tokens: int = 4,
    stop: tuple[int, ...] = (),
    salt: str | None = None,
    priority: int = 0,
) -> Request:
    """A prompt of one leading token, a picture of the numbered tiles, then `text` tokens."""
    images = ()
    if tiles:
        made = tuple(Tile(number.to_bytes(16, "big"), np.zeros((1, 1, 3), np.uint8)) for number in tiles)
        images = (ImageInput(made, (len(made), 1), (1, 1), start=1),)
    prompt = (1, *[2] * (TILE_TOKENS * len(tiles)), *range(3, 3 + text))
    sampling = SamplingParams(max_tokens=max_tokens, stop_token_ids=list(stop), seed=len(_BY_SEED))
    return enrol(Request(name, prompt, sampling, images, cache_salt=salt, priority=priority))


def enrol(item: Request) -> Request:
    """Make a request known under its seed."""
    assert item.sampling.seed is not None
    _BY_SEED[item.sampling.seed] = item
    return item


def image_rows(item: Request, sizes: Limits) -> list[tuple[bytes, int]]:
    """(tile, row of its page) of each image token that is computed, once the router has chosen."""
    digests = [tile.digest for image in item.images for tile in image.tiles]
    easy = np.zeros(len(digests), bool)
    if sizes.flash is not None and digests:
        scores = np.array([score(digest) for digest in digests], np.float32)
        threshold = np.quantile(scores, sizes.flash.relative_threshold)
        easy = (scores > threshold) & (scores >= sizes.flash.absolute_threshold)
    few = sizes.flash.tokens if sizes.flash else 0
    spans = [range(TILE_TOKENS, TILE_TOKENS + few) if short else range(TILE_TOKENS) for short in easy]
    return [(digest, row) for digest, span in zip(digests, spans, strict=True) for row in span]


def computed_prompt(item: Request, sizes: Limits) -> int:
    """Tokens of the prompt once the router has shortened it."""
    return len(item.prompt_ids) - item.prompt_ids.count(2) + len(image_rows(item, sizes))


class FakeRunner:
    """Fails on any plan that reads what is not there or writes where it may not."""

    def __init__(self, sizes: Limits, stuttering: bool = False, chance: random.Random | None = None) -> None:
        """With a `chance`, tiles are ready later, some steps after their plan, and in any order."""
        self.limits = sizes
        self.chance = chance
        self.queue: list[EncodeJob] = []
        self.stuttering = stuttering
        self.admissions: dict[int, Admission] = {}
        self.blocks: dict[int, list[int]] = {}
        self.computed: dict[int, int] = {}
        self.known: dict[int, int] = {}  # slot -> tokens in its table: admitted ones and those sampled there
        self.pages: dict[int, bytes] = {}
        self.plans: list[StepPlan] = []
        self.tiles_encoded = 0
        self.tokens_computed = 0
        self.truth: dict[int, list[int]] = {}  # slot -> what its keys and values have to be
        self.kv: dict[int, int] = {}  # block * block size + offset -> what they are
        self.closed = False

    def check(self) -> None:
        pass

    def launch(self, plan: StepPlan) -> Handle:
        self.plans.append(plan)
        for admission in plan.admissions:
            self._admit(admission)
        for grant in plan.grants:
            assert grant.first == len(self.blocks[grant.slot])
            self.blocks[grant.slot] += grant.block_ids
        self._check_totals(plan)
        for work in plan.work:
            self._check_work(work)
        self.queue += plan.encode
        assert len(self.queue) <= self.limits.tiles_in_flight
        encoded = [self._encode(job) for job in self._ready(plan.encode_budget)]
        sampled = {work.slot: self.next_tokens(work) for work in plan.work if work.samples}
        result = StepResult(sampled, tuple(encoded))
        return lambda: result

    def _ready(self, tiles: float | None) -> list[EncodeJob]:
        """Some of the queue: at least one, if the plan waits for tiles."""
        if self.chance is None:
            ready = self.queue
        else:
            least = min(len(self.queue), int(tiles is None))
            ready = self.chance.sample(self.queue, self.chance.randint(least, len(self.queue)))
        self.queue = [job for job in self.queue if job not in ready]
        return ready

    def _encode(self, job: EncodeJob) -> EncodedTile:
        self.pages[job.page] = job.digest
        self.tiles_encoded += 1
        return EncodedTile(job.digest, score(job.digest) if self.limits.flash else None)

    def next_tokens(self, work: Work) -> tuple[SampledToken, ...]:
        """One, and one more for each guess that is right. Depends on positions alone, so that a preempted sequence goes
        on as it would have."""
        return tuple(SampledToken(self.token(work.known_stop + place)) for place in range(self._right(work) + 1))

    def _right(self, work: Work) -> int:
        """Guesses before the first wrong one; those of a draft model that is often wrong where the plan has none."""
        for place in range(work.drafts):
            position = work.known_stop + place
            drawn = 0 if score(bytes([position, place])) < 0.3 else self.token(position)
            if (work.draft_ids[place] if work.draft_ids else drawn) != self.token(position):
                return place
        return work.drafts

    def token(self, position: int) -> int:
        """What stands at a position of an answer; a `stuttering` one repeats itself, but not always."""
        return 100 + (position % 5 + 50 * (position % 11 == 0) if self.stuttering else position)

    def close(self) -> None:
        self.closed = True

    def _admit(self, admission: Admission) -> None:
        assert 1 <= admission.slot <= self.limits.max_num_seqs
        self.admissions[admission.slot] = admission
        self.blocks[admission.slot] = []
        self.computed.pop(admission.slot, None)
        self.known[admission.slot] = len(admission.token_ids)
        self.truth[admission.slot] = self._truth_of(admission)

    def _truth_of(self, admission: Admission) -> list[int]:
        """One value for each token that the sequence may ever have."""
        item = _BY_SEED[admission.seed]
        rows = iter(image_rows(item, self.limits))
        ids = admission.token_ids
        value, values = hash(item.cache_salt), []
        for position in range(self.limits.max_model_len):
            token = ids[position] if position < len(ids) else self.token(position)
            value = hash((value, next(rows) if token == 2 and position < admission.num_prompt else token))
            values.append(value)
        return values

    def _check_totals(self, plan: StepPlan) -> None:
        assert sum(work.count for work in plan.work) <= self.limits.max_num_batched_tokens
        assert len({work.slot for work in plan.work}) == len(plan.work)
        used = list(itertools.chain.from_iterable(self.blocks[work.slot] for work in plan.work))
        assert all(0 < block < self.limits.num_blocks for block in used)
        read = {use.page for work in plan.work for use in work.tiles}
        assert not read & {job.page for job in plan.encode}, "a page is overwritten while it is read"

    def _check_work(self, work: Work) -> None:
        """Every token once and in order, into blocks that were granted, behind the right keys and values."""
        stop = work.start + work.count
        assert work.count > 0
        assert work.start == self.computed.get(work.slot, work.start)
        assert stop <= len(self.blocks[work.slot]) * self.limits.block_size
        assert work.known_stop <= self.known[work.slot], "a token that the device does not know"
        assert len(work.draft_ids) in (0, work.drafts)
        truth = self.truth[work.slot]
        for position in range(work.start):
            assert self.kv[self._place(work.slot, position)] == truth[position], "keys and values of something else"
        self._check_images(work, stop)
        self.computed[work.slot] = work.known_stop + self._right(work)
        if work.samples:
            self.known[work.slot] = self.computed[work.slot] + 1
        for position in range(work.start, stop):
            right = position < self.computed[work.slot]
            self.kv[self._place(work.slot, position)] = truth[position] if right else -1
        self.tokens_computed += work.count

    def _place(self, slot: int, position: int) -> int:
        size = self.limits.block_size
        return self.blocks[slot][position // size] * size + position % size

    def _check_images(self, work: Work, stop: int) -> None:
        """Image tokens of the chunk read the rows of the tiles that were asked about."""
        admission = self.admissions[work.slot]
        places = [i for i, token in enumerate(admission.token_ids[: admission.num_prompt]) if token == 2]
        expected = dict(zip(places, image_rows(_BY_SEED[admission.seed], self.limits), strict=True))
        read = {}
        for use in work.tiles:
            assert use.page in self.pages, "a page is read before anything was encoded into it"
            read |= {use.position + row: (self.pages[use.page], use.first + row) for row in range(use.rows)}
        for position in range(work.start, stop):
            assert read.get(position) == expected.get(position) or position not in expected, "the wrong row of a tile"


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
