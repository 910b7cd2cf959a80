"""TileIndex: which tile's rows are in which page. TileScores: which tiles of a Flash request take fewer rows.
TilePlanner: which tiles the next step encodes.

Tiles are known by digest alone, so a tile shared by pictures, requests or users is encoded once while it stays.
Nothing is pinned across steps: each plan holds what it uses and what the next sequences need, and the rest may go,
least recently used first. So no page can be lost by somebody who forgets to give it back.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tilewise.config import BATCH_ENCODE_BUDGET
from tilewise.engine.kv_cache import KVCache
from tilewise.engine.plan_builder import PlanBuilder
from tilewise.engine.sequence import SequenceState, TileSpan
from tilewise.step import EncodedTile, FlashRule, Limits, StepSeconds
from tilewise.timing import Clock
from tilewise.types import AnyTile, Tile

ENCODE_AHEAD = 4
"""Number of waiting sequences whose tiles are encoded before their turn."""


@dataclass(slots=True)
class TilePage:
    """A page of the tile pool that a tile is in, or on its way into."""

    number: int
    ready: bool = False
    """True once the tile is encoded."""
    held_by: int = -1
    """Index of the step that last wanted it."""


class TileIndex:
    """The pages of the tile pool, by the digest of the tile that is in each or on its way there."""

    def __init__(self, num_pages: int) -> None:
        self._free = list(range(num_pages - 1, -1, -1))
        self._pages: OrderedDict[bytes, TilePage] = OrderedDict()  # least recently used first
        self._step = 0
        self._in_flight = 0

    def begin_step(self, index: int) -> None:
        self._step = index

    def peek(self, digest: bytes) -> TilePage | None:
        """Return a tile's page, which may not be filled yet; None if it has none. Asking holds nothing."""
        return self._pages.get(digest)

    def hold(self, digest: bytes) -> TilePage | None:
        """Keep a tile's page for this step and return it, as `peek` does."""
        page = self._pages.get(digest)
        if page is not None:
            page.held_by = self._step
            self._pages.move_to_end(digest)
        return page

    def place(self, digest: bytes) -> int | None:
        """Return a page for a tile that is to be encoded in this step; None if every page is held."""
        number = self._free.pop() if self._free else self._evict()
        if number is not None:
            self._pages[digest] = TilePage(number, held_by=self._step)
            self._in_flight += 1
        return number

    @property
    def in_flight(self) -> int:
        """Number of tiles that have a page and are not in it yet."""
        return self._in_flight

    @property
    def empty(self) -> bool:
        return not self._pages

    def encoded(self, digests: Iterable[bytes]) -> None:
        for digest in digests:
            self._pages[digest].ready = True
            self._in_flight -= 1

    def drop(self, digest: bytes) -> None:
        """Give back the page of a tile that was on its way there, and whose rows are of no use."""
        self._free.append(self._pages.pop(digest).number)
        self._in_flight -= 1

    def forget(self, used: bool) -> None:
        """Empty all filled pages; while sequences use pages (`used`), only those that the newest step does not want."""
        ready = [(digest, page) for digest, page in self._pages.items() if page.ready]
        unwanted = [digest for digest, page in ready if not used or self._is_spare(page)]
        self._free += [self._pages.pop(digest).number for digest in unwanted]

    def _evict(self) -> int | None:
        for digest, page in self._pages.items():
            if self._is_spare(page):
                del self._pages[digest]
                return page.number
        return None

    def _is_spare(self, page: TilePage) -> bool:
        # The step before this one may still be reading the page. It can be filled anew all the same, as the runner
        # keeps steps in order; but a page that is yet to be filled is not spare, or two tiles would be written to it.
        return page.ready and page.held_by < self._step


_REMEMBERED = 2**17
"""Most scores that are kept, those not asked for the longest forgotten first: about 20 MB, far more than tiles wait."""


class TileScores:
    """The scores of a Flash router, by tile digest.

    A tile's score depends on the tile alone, so it is remembered by digest. Which tiles are easy depends on all tiles
    of a request, so that is decided anew for each. A request whose tiles all have scores is settled the moment it
    arrives.
    """

    def __init__(self) -> None:
        self._scores: OrderedDict[bytes, float] = OrderedDict()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._scores

    def learn(self, tiles: Iterable[EncodedTile]) -> None:
        for tile in tiles:
            if tile.score is not None:
                # The first stays, so that a tile encoded again in another batch does not change a request's choice.
                self._scores.setdefault(tile.digest, tile.score)
        while len(self._scores) > _REMEMBERED:
            self._scores.popitem(last=False)

    def of(self, digests: Sequence[bytes]) -> list[float] | None:
        """Return the scores of all these tiles, or None while one is unknown.

        A score that is asked for is kept the longer: it has to outlive the tile's page, as a tile that has a page is
        not encoded again, and would get no other score.
        """
        for digest in digests:
            if digest in self._scores:
                self._scores.move_to_end(digest)
        known = [self._scores[digest] for digest in digests if digest in self._scores]
        return known if len(known) == len(digests) else None


def easy_tiles(scores: Sequence[float], rule: FlashRule) -> list[bool]:
    """Return which tiles of one request take the few rows. A single tile never does: it is its own quantile."""
    values = np.asarray(scores, np.float32)
    easy = (values > quantile(values, rule.relative_threshold)) & (values >= rule.absolute_threshold)
    return [bool(short) for short in easy]


def quantile(values: NDArray[np.float32], q: float) -> np.float32:
    """Return a quantile, linear between the two nearest of the sorted values.

    It is computed in float32, as by torch.quantile in the reference: whether 0.29 * 100 is 29 or a little less decides
    on a tile.
    """
    ordered = np.sort(values)
    rank = np.float32(q) * np.float32(len(ordered) - 1)
    low, high = ordered[math.floor(rank)], ordered[math.ceil(rank)]
    return np.float32(low + (rank - np.float32(math.floor(rank))) * (high - low))


class TilePlanner:
    """The planner of what is encoded: which tiles sequences need, and when they have them."""

    def __init__(self, limits: Limits, tiles: TileIndex, scores: TileScores, kv: KVCache, clock: Clock) -> None:
        self._limits, self._tiles, self._scores, self._kv, self._clock = limits, tiles, scores, kv, clock
        self._seconds: StepSeconds | None = None

    def propose(self, plan: PlanBuilder, running: Sequence[SequenceState], waiting: Sequence[SequenceState]) -> None:
        """Plan to encode the tiles that running sequences and the next waiting ones lack, most urgent first.

        Few are in flight at a time, so that a more urgent sequence's tiles never stand behind many others.
        """
        budget = self._encode_budget()
        # A budget below one tile cuts encoding into slices, to keep the steps of sequences that decode short. Where
        # none does, a slice would only be a step that brings nothing: None = go on until some tiles are in their pages.
        plan.encode_budget = budget if budget >= 1 or any(sequence.decoding for sequence in running) else None
        ahead = [*running, *waiting[:ENCODE_AHEAD]]
        for sequence in [sequence for sequence in ahead if sequence.tiles_after(sequence.num_computed)]:
            if sequence.moments.wanted is None and not self._has_tiles(sequence):
                sequence.moments = replace(sequence.moments, wanted=self._clock())
            for tile in self._missing_tiles(sequence):
                if self._tiles.in_flight >= self._limits.tiles_in_flight and isinstance(tile, Tile):
                    return
                page = self._tiles.place(tile.digest)
                if page is None:
                    return
                plan.fill(page, tile)
                if isinstance(tile, Tile):
                    sequence.encoded.add(tile.digest)

    def take_in(
        self,
        encoded: Sequence[EncodedTile],
        running: Sequence[SequenceState],
        waiting: Sequence[SequenceState],
        now: float,
    ) -> None:
        """Take in tiles that are in their pages `now`; Flash prompts may get their length by their scores."""
        if not encoded:
            return
        self._tiles.encoded(tile.digest for tile in encoded)
        self._scores.learn(encoded)
        for sequence in waiting:
            self.settle(sequence)
        for sequence in (*running, *waiting):
            moments = sequence.moments
            if moments.wanted is not None and moments.encoded is None and self._has_tiles(sequence):
                sequence.moments = replace(moments, encoded=now)

    def settle(self, sequence: SequenceState) -> None:
        """Fix the length of a Flash prompt, if the scores of all its tiles are known."""
        if sequence.settled:
            return
        scores = self._scores.of([span.tile.digest for span in sequence.tiles])
        if scores is not None:
            assert self._limits.flash is not None
            sequence.shorten(easy_tiles(scores, self._limits.flash), self._limits.flash.tokens)

    def learn(self, seconds: StepSeconds | None) -> None:
        """Take in the times of a step, by which tiles get their share of the next ones; None = they were not taken."""
        self._seconds = seconds or self._seconds

    def needed(self, sequence: SequenceState) -> tuple[TileSpan, ...]:
        """Return the tiles that a sequence still needs: their rows, or their scores alone if it is unsettled."""
        return sequence.tiles_after(self._first_uncached(sequence))

    def _first_uncached(self, sequence: SequenceState) -> int:
        """Return the position from which on tiles are needed: what is computed, or for a waiting sequence the length of
        the prefix it will take from the cache.
        """
        if sequence.slot is not None or not sequence.tiles or not sequence.settled:
            return sequence.num_computed
        return len(self._kv.known_prefix(sequence)) * self._limits.block_size

    def _missing_tiles(self, sequence: SequenceState) -> Iterator[AnyTile]:
        """Yield the tiles that a sequence still needs and that are in no page; hold those that are.

        An unsettled sequence needs scores alone, so that its scored tiles may lose their pages to others.
        """
        for span in self.needed(sequence):
            done = not sequence.settled and span.tile.digest in self._scores
            if not done and self._tiles.hold(span.tile.digest) is None:
                yield span.tile

    def _has_tiles(self, sequence: SequenceState) -> bool:
        """Return whether all tiles that a sequence still needs are encoded, or scored if it is unsettled."""
        digests = [span.tile.digest for span in self.needed(sequence)]
        if not sequence.settled:
            return all(digest in self._scores for digest in digests)
        pages = map(self._tiles.peek, digests)
        return all(page is not None and page.ready for page in pages)

    def _encode_budget(self) -> float:
        """Return the tiles that may be encoded behind the next step while something decodes.

        Where time is what counts, tiles and tokens get the same share of it, but for very short and very long steps.
        """
        least = self._limits.encode_seconds
        if least is None or self._seconds is None:
            return self._limits.encode_budget
        share = min(max(least, self._seconds.tokens), 4 * least)
        return min(share / self._seconds.tile, BATCH_ENCODE_BUDGET)
