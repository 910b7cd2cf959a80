"""Placement: which row of the batch each token of a step stands in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tilewise.platforms.base import PANEL
from tilewise.step import Work


@dataclass(frozen=True, slots=True)
class Placement:
    """Rows in which no token stands are padding."""

    rows: Tensor
    """int64 [T] row of each token, in the order of the work."""
    total: int

    def spread(self, values: Tensor) -> Tensor:
        """One value a token [T] -> one a row [total]. Padding has 0: token 0, its key and value in the dummy block."""
        return values.new_zeros(self.total).index_copy_(0, self.rows, values)


def in_order(work: Sequence[Work], device: torch.device) -> Placement:
    """One token after the other, without padding."""
    total = sum(item.count for item in work)
    return Placement(torch.arange(total, device=device), total)


def in_panels(work: Sequence[Work], device: torch.device) -> Placement:
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
            spans.append(torch.arange(row, row + stop - first, device=device))
    return Placement(torch.cat(spans), len(taken) * PANEL)


def _cuts(item: Work) -> Iterator[tuple[int, int]]:
    """The positions of a piece of work, cut where panels end."""
    first, end = item.start, item.start + item.count
    while first < end:
        stop = min(end, (first // PANEL + 1) * PANEL)
        yield first, stop
        first = stop
