"""What two runs of the same requests have to have in common."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Answers = dict[str, tuple[list[int], Tensor]]
"""By request: its tokens, and the logits [tokens, vocabulary] that they were chosen from."""

watchers: list[Callable[[Tensor, Tensor, float], None]] = []
"""Told of every comparison: what was found, what was expected, the tolerance."""


def assert_same(found: Answers, expected: Answers, tolerance: float = 1e-5) -> None:
    """The same tokens; logits within the tolerance, relative to logits of order one. 0: not a bit differs."""
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name][0] == expected[name][0], name
        for watch in watchers:
            watch(found[name][1], expected[name][1], tolerance)
        torch.testing.assert_close(found[name][1], expected[name][1], atol=tolerance, rtol=tolerance)
