"""Flash models: the router's scores, and which tiles of a request take fewer rows.

A tile's score depends on the tile alone, so it is remembered by digest; the choice depends on all tiles of a request,
so it is made anew for each. A request whose tiles are all known is settled the moment it arrives.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from tilewise.step import EncodedTile, FlashRule

_REMEMBERED = 2**17
"""Scores, the oldest forgotten first: about 20 MB, and far more tiles than wait at a time."""


class TileScores:
    """Scores by tile digest."""

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
        """The scores of all these tiles, or None while one is unknown."""
        known = [self._scores[digest] for digest in digests if digest in self._scores]
        return known if len(known) == len(digests) else None


def easy_tiles(scores: Sequence[float], rule: FlashRule) -> list[bool]:
    """Which tiles of one request take the few rows. A request of a single tile never does: it is its own quantile."""
    values = np.asarray(scores, np.float32)
    easy = (values > quantile(values, rule.relative_threshold)) & (values >= rule.absolute_threshold)
    return [bool(short) for short in easy]


def quantile(values: NDArray[np.float32], q: float) -> np.float32:
    """Linear between the two nearest of the sorted values.

    In float32, as torch.quantile of the reference: whether 0.29 * 100 is 29 or a little less decides on a tile.
    """
    ordered = np.sort(values)
    rank = np.float32(q) * np.float32(len(ordered) - 1)
    low, high = ordered[math.floor(rank)], ordered[math.ceil(rank)]
    return np.float32(low + (rank - np.float32(math.floor(rank))) * (high - low))
