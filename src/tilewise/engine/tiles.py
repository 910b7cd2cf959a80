"""TileIndex: which tile's rows are in which page. TileScores: which tiles of a Flash request take fewer rows.

Tiles are known by digest alone, so a tile shared by pictures, requests or users is encoded once while it stays.
Nothing is pinned across steps: each plan holds what it uses and what the next sequences need, and the rest may go,
least recently used first. So no page can be lost by somebody who forgets to give it back.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilewise.step import EncodedTile, FlashRule


@dataclass(slots=True)
class _TilePage:
    number: int
    ready: bool = False
    held_by: int = -1  # the step that last wanted it


class TileIndex:
    """The pages of the tile pool, by the digest of the tile that is in each or on its way there."""

    def __init__(self, num_pages: int) -> None:
        self._free = list(range(num_pages - 1, -1, -1))
        self._pages: OrderedDict[bytes, _TilePage] = OrderedDict()  # least recently used first
        self._step = 0
        self._in_flight = 0

    def begin_step(self, index: int) -> None:
        self._step = index

    def ready_page(self, digest: bytes) -> int | None:
        """Return the page of an encoded tile, and hold it for this step; None while the tile is not encoded."""
        page = self._hold(digest)
        return page.number if page and page.ready else None

    def is_ready(self, digest: bytes) -> bool:
        """Return whether a tile is encoded; asking holds nothing."""
        page = self._pages.get(digest)
        return page is not None and page.ready

    def hold(self, digest: bytes) -> bool:
        """Keep a tile for this step; return False if it is in no page, not even on its way into one."""
        return self._hold(digest) is not None

    def place(self, digest: bytes) -> int | None:
        """Return a page for a tile that is to be encoded in this step; None if every page is held."""
        number = self._free.pop() if self._free else self._evict()
        if number is not None:
            self._pages[digest] = _TilePage(number, held_by=self._step)
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

    def _hold(self, digest: bytes) -> _TilePage | None:
        page = self._pages.get(digest)
        if page is not None:
            page.held_by = self._step
            self._pages.move_to_end(digest)
        return page

    def _evict(self) -> int | None:
        for digest, page in self._pages.items():
            if self._is_spare(page):
                del self._pages[digest]
                return page.number
        return None

    def _is_spare(self, page: _TilePage) -> bool:
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
