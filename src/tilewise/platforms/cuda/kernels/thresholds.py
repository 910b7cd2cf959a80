"""The threshold that truncation means for a row of logits, without a sort: what `sampling.py` says of it, in kernels.

Each is a program for a chunk of a row, or for a row: see the list there. Beside the threshold there is what those
kernels share with the race: floats as whole numbers of the same order, scaled logits, and a row's likeliest token.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_PIVOTS = 32
"""Logits, evenly spaced, of which `_pivots` takes the count and the mass of what is above."""
_COLUMNS = 32
"""Candidates of each chunk that `_threshold` takes at a time."""
_SPAN: tl.constexpr = tl.constexpr(28.0)
"""Distance from the highest logit at which a logit weighs less than the unit of masses."""
_BANNED: tl.constexpr = tl.constexpr(-1e29)
"""A logit above `runner.logits.BANNED`, whatever penalties make of that, and below any logit of a model."""


@triton.jit
def pattern_of(value):
    """Map floats to int32 of the same order; zeros are equal, and NaN lies above everything, as in torch.argmax.

    Bits of positive floats rise with them already; those of negative ones fall, so all but their sign are inverted.
    """
    bits = tl.where(value == 0, 0.0, value).to(tl.int32, bitcast=True)
    return tl.where(value != value, 0x7FFFFFFF, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits))


@triton.jit
def number_of(pattern):
    """Return the float of a `pattern_of`."""
    return tl.where(pattern < 0, pattern ^ 0x7FFFFFFF, pattern).to(tl.float32, bitcast=True)


@triton.jit
def with_place(pattern, place):
    """Pack pattern and place into int64, the largest of which has the largest pattern, and of several the first."""
    return (pattern.to(tl.int64) << 32) | (0x7FFFFFFF - place).to(tl.int64)


@triton.jit
def scaled_logits(logits, stride, rows, temperatures, index, place, width):
    """Load logits over temperature, -inf behind the end; the division is torch's, so that what ties there ties here."""
    row = tl.load(rows + index)
    temperature = tl.load(temperatures + index)
    value = tl.load(logits + row * stride + place, mask=place < width, other=-float("inf")).to(tl.float32)
    return tl.div_rn(value, tl.zeros_like(value) + tl.where(temperature > 0, temperature, 1.0))


@triton.jit
def highest_of(firsts, index, chunks, CHUNKS: tl.constexpr):
    """Return `with_place` of a row's likeliest token."""
    chunk = tl.arange(0, CHUNKS)
    return tl.max(tl.load(firsts + index * chunks + chunk, mask=chunk < chunks, other=-(2**63)))


@triton.jit
def _no_threshold(temperatures, top_ks, top_ps, highest, index, width):
    """Tell whether a row needs no threshold: it is greedy, keeps every token (but for min-p), or has a likeliest token
    that is infinite or NaN.
    """
    top_k = tl.load(top_ks + index)
    whole = ((top_k <= 0) | (top_k >= width)) & (tl.load(top_ps + index) == 1)
    finite = tl.abs(highest) < float("inf")
    return (tl.load(temperatures + index) == 0) | whole | (finite == 0)


@triton.jit
def _weight(value, highest, min_p):
    """Return the probability as a multiple of the likeliest token's; 0 for what min-p leaves out."""
    weight = tl.exp(value - highest)
    return tl.where(weight >= min_p, weight, 0.0)


@triton.jit
def _units(weight):
    return (weight * 1099511627776.0).to(tl.int64)  # 2^40


@triton.jit
def extremes(logits, stride, rows, temperatures, firsts, lows, width, CHUNK: tl.constexpr):
    """Store a chunk's likeliest token, and its smallest logit that is not banned."""
    index, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = chunk * CHUNK + tl.arange(0, CHUNK)
    value = scaled_logits(logits, stride, rows, temperatures, index, place, width)
    at = index * tl.num_programs(1) + chunk
    tl.store(firsts + at, tl.max(with_place(tl.where(place < width, pattern_of(value), -(2**31)), place)))
    tl.store(lows + at, tl.min(tl.where(value > _BANNED, value, float("inf"))))


@triton.jit
def _pivots(
    logits, stride, rows, temperatures, top_ks, top_ps, min_ps, firsts, lows, pivots, counts, masses, width,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr, PIVOTS: tl.constexpr, SOME: tl.constexpr,
):  # fmt: skip
    """Store for each pivot how many of a chunk's logits are not below it, and their mass.

    Both grow from one pivot to the next. So the first pivot with k logits or more, or with top-p's share of the mass,
    and the pivot before it have the wanted threshold between them, which leaves few logits to look at one by one.

    Pivots fall evenly from the highest logit towards the lowest that matters, but for the last of them, which is -inf.
    Counts are exact. Masses are sums of float32, and only have to be right to the 1e-4 that `_bracket` grants.
    """
    index, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    chunks = tl.num_programs(1)
    highest = number_of((highest_of(firsts, index, chunks, CHUNKS) >> 32).to(tl.int32))
    if _no_threshold(temperatures, top_ks, top_ps, highest, index, width):
        return
    every = tl.arange(0, CHUNKS)
    span = highest - tl.min(tl.load(lows + index * chunks + every, mask=every < chunks, other=float("inf")))
    span = tl.where(span > 0, tl.minimum(span, _SPAN), 1.0)
    number = tl.arange(0, PIVOTS)
    pivot = tl.where(number < PIVOTS - 1, highest - (number + 1) * (span / PIVOTS), -float("inf"))
    if chunk == 0:
        tl.store(pivots + index * PIVOTS + number, pivot)
    min_p = tl.load(min_ps + index)
    count = tl.zeros((SOME, PIVOTS), tl.int32)
    mass = tl.zeros((SOME, PIVOTS), tl.float32)
    for start in range(0, CHUNK, SOME):
        place = chunk * CHUNK + start + tl.arange(0, SOME)
        value = scaled_logits(logits, stride, rows, temperatures, index, place, width)
        weight = _weight(value, highest, min_p)
        above = (value[:, None] >= pivot[None, :]) & (place < width)[:, None]
        count += above.to(tl.int32)
        mass += tl.where(above, weight[:, None], 0.0)
    at = (index * chunks + chunk) * PIVOTS + number
    tl.store(counts + at, tl.sum(count, axis=0))
    tl.store(masses + at, tl.sum(mass, axis=0))


@triton.jit
def _at(values, number, place):
    """Return values[place], or 0 for the place before the first."""
    return tl.sum(tl.where(number == place, values, 0))


@triton.jit
def _bracket(
    temperatures, top_ks, top_ps, firsts, pivots, counts, masses, bounds, width, chunks,
    CHUNKS: tl.constexpr, PIVOTS: tl.constexpr,
):  # fmt: skip
    """Store a row's bounds [2]: the thresholds of top-k and of top-p are at least the first of them, and below the
    second.

    The k-th likeliest token lies between the first pivot above which k are, and the pivot before. Top-p keeps a token
    if what is above it holds less than its share, so its threshold lies between the first pivot above which the share
    is, and the pivot before. The share is one of the mass that top-k leaves, which lies between the masses above those
    two pivots of top-k: the larger one gives the lower bound, and the smaller one the upper bound.
    """
    index = tl.program_id(0).to(tl.int64)
    highest = number_of((highest_of(firsts, index, chunks, CHUNKS) >> 32).to(tl.int32))
    if _no_threshold(temperatures, top_ks, top_ps, highest, index, width):
        return
    chunk, number = tl.arange(0, CHUNKS), tl.arange(0, PIVOTS)
    at = (index * chunks + chunk[:, None]) * PIVOTS + number[None, :]
    count = tl.sum(tl.load(counts + at, mask=(chunk < chunks)[:, None], other=0), axis=0)
    mass = tl.sum(tl.load(masses + at, mask=(chunk < chunks)[:, None], other=0.0), axis=0)
    top_k, top_p = tl.load(top_ks + index), tl.load(top_ps + index)
    has_k = (top_k > 0) & (top_k < width)
    kth = tl.where(has_k, tl.sum((count < top_k).to(tl.int32)), PIVOTS - 1)
    most = _at(mass, number, kth) * top_p * 1.0001
    least = tl.where(has_k, _at(mass, number, kth - 1), _at(mass, number, kth)) * top_p * 0.9999
    first = tl.sum((mass < least).to(tl.int32))
    last = tl.minimum(tl.sum((mass < most).to(tl.int32)), PIVOTS - 1)
    # With top-p, `first` is at most `kth`, as `least` is not above the mass before that: the bound serves top-k too.
    first = tl.where(top_p == 1, kth, first)
    last = tl.where(top_p == 1, kth, tl.where(has_k, tl.maximum(last, kth), last))
    pivot = pivots + index * PIVOTS
    tl.store(bounds + index * 2, tl.load(pivot + last))
    tl.store(bounds + index * 2 + 1, tl.load(pivot + first - 1, mask=first > 0, other=float("inf")))


@triton.jit
def _candidates(
    logits, stride, rows, temperatures, top_ks, top_ps, min_ps, firsts, bounds, held, found, above_counts, above_masses,
    all_masses, width, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Store a chunk's logits between the bounds, one behind the other at the chunk's place in `held`, and their number;
    also number and mass of those above, and the mass of all.
    """
    index, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    chunks = tl.num_programs(1)
    highest = number_of((highest_of(firsts, index, chunks, CHUNKS) >> 32).to(tl.int32))
    if _no_threshold(temperatures, top_ks, top_ps, highest, index, width):
        return
    place = chunk * CHUNK + tl.arange(0, CHUNK)
    value = scaled_logits(logits, stride, rows, temperatures, index, place, width)
    mass = _units(_weight(value, highest, tl.load(min_ps + index)))
    below, above = tl.load(bounds + index * 2), value >= tl.load(bounds + index * 2 + 1)
    inside = (place < width) & (value >= below) & (above == 0)
    at = index * chunks + chunk
    behind = tl.cumsum(inside.to(tl.int32), 0) - 1
    tl.store(held + at * CHUNK + behind, value, mask=inside)
    tl.store(found + at, tl.sum(inside.to(tl.int32)))
    tl.store(above_counts + at, tl.sum(above.to(tl.int32)))
    tl.store(above_masses + at, tl.sum(tl.where(above, mass, 0)))
    tl.store(all_masses + at, tl.sum(tl.where(place < width, mass, 0)))


@triton.jit
def _from_on(
    held, found, most, highest, min_p, threshold, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Return number and mass of a row's candidates whose pattern is the threshold or more.

    The first candidates of all chunks are read side by side, so that a few of each take a single step.
    """
    chunk, column = tl.arange(0, CHUNKS)[:, None], tl.arange(0, COLUMNS)[None, :]
    count = tl.zeros((), tl.int64)
    mass = tl.zeros((), tl.int64)
    for start in range(0, most, COLUMNS):
        inside = start + column < found[:, None]
        value = tl.load(held + chunk * CHUNK + start + column, mask=inside, other=-float("inf"))
        above = inside & (pattern_of(value).to(tl.int64) >= threshold)
        count += tl.sum(above.to(tl.int32)).to(tl.int64)
        mass += tl.sum(tl.where(above, _units(_weight(value, highest, min_p)), 0))
    return count, mass


@triton.jit
def _threshold(
    temperatures, top_ks, top_ps, min_ps, firsts, bounds, held, founds, above_counts, above_masses, all_masses,
    thresholds, width, chunks, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Store the pattern from which on top-k and top-p keep a row's tokens; it is int64 here so that none overflows."""
    index = tl.program_id(0).to(tl.int64)
    highest_pattern = (highest_of(firsts, index, chunks, CHUNKS) >> 32).to(tl.int32)
    highest = number_of(highest_pattern)
    if _no_threshold(temperatures, top_ks, top_ps, highest, index, width):
        tl.store(thresholds + index, -(2**31))
        return
    chunk = tl.arange(0, CHUNKS)
    at, there = index * chunks + chunk, chunk < chunks
    found = tl.load(founds + at, mask=there, other=0)
    most = tl.max(found)
    above_count = tl.sum(tl.load(above_counts + at, mask=there, other=0)).to(tl.int64)
    above_mass = tl.sum(tl.load(above_masses + at, mask=there, other=0))
    mass = tl.sum(tl.load(all_masses + at, mask=there, other=0))
    below = pattern_of(tl.load(bounds + index * 2)).to(tl.int64)
    above = pattern_of(tl.load(bounds + index * 2 + 1)).to(tl.int64)
    top_k, top_p, min_p = tl.load(top_ks + index), tl.load(top_ps + index), tl.load(min_ps + index)
    own = held + index * chunks * CHUNK
    result = tl.full((), -(2**31), tl.int64)
    if (top_k > 0) & (top_k < width):
        # Bisection: from `result` on there are k tokens or more, from `over` on fewer.
        result = below
        over = above
        while over - result > 1:
            middle = result + (over - result) // 2
            count, _ = _from_on(own, found, most, highest, min_p, middle, CHUNK, CHUNKS, COLUMNS)
            enough = above_count + count >= top_k
            result = tl.where(enough, middle, result)
            over = tl.where(enough, over, middle)
        _, inner = _from_on(own, found, most, highest, min_p, result, CHUNK, CHUNKS, COLUMNS)
        mass = above_mass + inner
    if top_p < 1:
        share = top_p.to(tl.float64) * mass.to(tl.float64)
        # Bisection: tokens above `under` hold the share or more, those above `kept` less, so a token at `kept` stays.
        under = below - 1
        kept = above - 1
        while kept - under > 1:
            middle = under + (kept - under) // 2
            _, inner = _from_on(own, found, most, highest, min_p, middle + 1, CHUNK, CHUNKS, COLUMNS)
            less = (above_mass + inner).to(tl.float64) < share
            kept = tl.where(less, middle, kept)
            under = tl.where(less, under, middle)
        result = tl.maximum(result, kept)
    tl.store(thresholds + index, tl.minimum(result, highest_pattern.to(tl.int64)).to(tl.int32))


def pair_of(like: Tensor, rows: int, columns: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Allocate two tensors [rows, columns] at once, on the device of another; each begins at a multiple of 16 bytes,
    whatever the number of rows, since kernels are compiled apart for those that do not.
    """
    first, second = like.new_empty(2, triton.cdiv(rows, 4) * 4, columns, dtype=dtype)[:, :rows]
    return first, second


def thresholds_of(
    of_rows: tuple[Tensor, int, Tensor, Tensor],
    cuts: tuple[Tensor, Tensor, Tensor],
    firsts: Tensor,
    lows: Tensor,
    chunk: int,
) -> Tensor:
    """Return int32 [n], the `pattern_of` of the lowest logit, divided by temperature, that top-k and top-p keep, or a
    lower one that keeps the same tokens.

    `of_rows` are logits, their stride, rows and temperatures; `cuts` top_k, top_p and min_p; a program takes `chunk`
    tokens.
    """
    logits, _, _, temperature = of_rows
    (n, chunks), width = firsts.shape, logits.shape[1]
    sizes = {"CHUNK": chunk, "CHUNKS": triton.next_power_of_2(chunks)}
    pivots = logits.new_empty(n, _PIVOTS, dtype=torch.float32)
    counts = logits.new_empty(n, chunks, _PIVOTS, dtype=torch.int32)
    masses = logits.new_empty(n, chunks, _PIVOTS, dtype=torch.float32)
    _pivots[n, chunks](
        *of_rows,
        *cuts,
        firsts,
        lows,
        pivots,
        counts,
        masses,
        width,
        PIVOTS=_PIVOTS,
        SOME=min(128, chunk),
        **sizes,
    )
    bounds = logits.new_empty(n, 2, dtype=torch.float32)
    _bracket[n,](
        temperature, *cuts[:2], firsts, pivots, counts, masses, bounds, width, chunks,
        CHUNKS=sizes["CHUNKS"], PIVOTS=_PIVOTS,
    )  # fmt: skip
    held = logits.new_empty(n, chunks, chunk, dtype=torch.float32)
    found, above_counts = pair_of(logits, n, chunks, torch.int32)
    above_masses, all_masses = pair_of(logits, n, chunks, torch.int64)
    candidates = bounds, held, found, above_counts, above_masses, all_masses
    _candidates[n, chunks](*of_rows, *cuts, firsts, *candidates, width, **sizes)
    thresholds = logits.new_empty(n, dtype=torch.int32)
    _threshold[n,](
        temperature, *cuts, firsts, *candidates, thresholds, width, chunks, COLUMNS=_COLUMNS, num_warps=8, **sizes
    )
    return thresholds
