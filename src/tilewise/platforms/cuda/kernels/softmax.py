"""Online softmax: the running largest score, sum of weights and weighted sum of values of each row of a tile.

Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018), as FlashAttention uses it. Scores are in
units of log2, since the hardware has a power of two and no power of e; a hidden score is -inf.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1e38)
"""The largest score before the first: finite, so that a row that has seen nothing yet subtracts no infinities."""


@triton.jit
def weighed(scores, peak, total, mixed):
    """The weights of a block of scores [M, N] against the new peaks [M], and what was there brought down to them."""
    higher = tl.maximum(peak, tl.max(scores, 1))
    weights = tl.exp2(scores - higher[:, None])
    shrunk = tl.exp2(peak - higher)
    return weights, higher, total * shrunk + tl.sum(weights, 1), mixed * shrunk[:, None]
