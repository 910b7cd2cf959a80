"""Logits of some rows of a batch, in the shapes that the mode allows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tilewise.platforms.base import PANEL

Head = Callable[[Tensor], Tensor]
"""Hidden states [R, H] -> logits [R, vocabulary]."""


def together(head: Head, hidden: Tensor, rows: Tensor) -> Tensor:
    """One product of all rows: how each is rounded depends on their number."""
    return head(hidden[rows])


def one_by_one(head: Head, hidden: Tensor, rows: Tensor) -> Tensor:
    """Batch-invariant for a few rows: a vocabulary is wide, and a whole panel takes as long as seven rows alone."""
    return torch.cat([head(hidden[row]) for row in rows.split(1)])


def by_panels(head: Head, hidden: Tensor, rows: Tensor) -> Tensor:
    """Batch-invariant for many rows: every panel that has one of them is computed whole."""
    panels, index = (rows // PANEL).unique(return_inverse=True)
    logits = head(hidden.unflatten(0, (-1, PANEL))[panels].flatten(0, 1))
    return logits[index * PANEL + rows % PANEL]
