"""Rows of tensors that do not lie one behind the other, such as heads that are split out of a wider row."""

from __future__ import annotations

from torch import Tensor


def row_steps(x: Tensor) -> list[tuple[int, int]]:
    """Return how the rows of x [..., width] are found: (count, step) of each axis before the last, the outermost first.

    Axes of one row are left out, and those that one step can go through together are one.
    """
    steps: list[tuple[int, int]] = []
    for count, step in zip(x.shape[:-1], x.stride()[:-1], strict=True):
        if count == 1:
            continue
        if steps and steps[-1][1] == count * step:
            steps[-1] = (steps[-1][0] * count, step)
        else:
            steps.append((count, step))
    return steps
