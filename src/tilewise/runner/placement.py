"""Placement: which row of the batch each token of a step stands in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilewise.platforms.base import PANEL
from tilewise.step import Work

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Placement:
    """Rows in which no token stands are padding."""

    rows: Integers
    """[T] row of each token, in the order of the work."""
    total: int

    def spread(self, values: Integers) -> Integers:
        """One value a token [T] -> one a row [total]. Padding has 0: token 0, its key and value in the dummy block."""
        spread = np.zeros(self.total, np.int64)
        spread[self.rows] = values
        return spread


def in_order(work: Sequence[Work]) -> Placement:
    """One token after the other, without padding."""
    total = sum(item.count for item in work)
    return Placement(np.arange(total), total)


def in_panels(work: Sequence[Work]) -> Placement:
    """A token at position p stands in row p % PANEL of a panel, whoever else is there.

    Sequences share panels where their places differ, so that eight that decode take two or three and not eight.
    """
    taken: list[int] = []  # rows of each panel, one bit each
    spans = []
    for item in work:
        for first, stop in _cuts(item):
            places = (1 << stop - first) - 1 << first % PANEL
            panel = next((number for number, rows in enumerate(taken) if not rows & places), len(taken))
            if panel == len(taken):
                taken.append(0)
            taken[panel] |= places
            row = panel * PANEL + first % PANEL
            spans.append(np.arange(row, row + stop - first))
    return Placement(np.concatenate(spans), len(taken) * PANEL)


def _cuts(item: Work) -> Iterator[tuple[int, int]]:
    """The positions of a piece of work, cut where panels end."""
    first, end = item.start, item.start + item.count
    while first < end:
        stop = min(end, (first // PANEL + 1) * PANEL)
        yield first, stop
        first = stop
