"""Sampling: the tokens of `tilewise.platforms.draw` and of argmax, without a sort and without a wait for the device.

What truncation leaves of a row is everything from some logit on, ties included, so all that has to be found is that
threshold; the exponential race then takes one more pass. A row is spread over programs of _CHUNK tokens (75 for a
vocabulary of 151,674), as one processor alone reads only some 64 bytes a clock, and what they find meets in short
kernels of one program a row:

    extremes     every chunk: likeliest token, smallest logit
    _pivots      every chunk: count and mass above _PIVOTS logits, evenly spaced
    _bracket     every row: the two pivots between which the thresholds of top-k and top-p lie
    _candidates  every chunk: what lies between them, gathered; exact count and mass above
    _threshold   every row: bisection among what was gathered, usually some hundred of the 151,674
    _race        every chunk: the winner of the race
    _winner      every row: that of its chunks' winners, or if it is greedy, of their likeliest tokens

A radix select by the digits of the pattern would need eight launches instead of the middle four (four for each of top-k
and top-p), and histograms of masses, which are sums by atomics. Where logits are so even that the bracket holds much of
a row, `_threshold` reads that part some twenty times for each of top-k and top-p.

Masses that decide are sums of whole numbers (weights in units of 2^-40), which are the same in any order: a row's token
depends on nothing else in the batch. They differ from sums of float32 by about 1e-7 of the whole.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tilewise.platforms.cuda.kernels.thresholds import (
    extremes,
    highest_of,
    number_of,
    pair_of,
    pattern_of,
    scaled_logits,
    thresholds_of,
    with_place,
)

_CHUNK = 2048
"""Tokens of a program: 16 a thread, which stay in registers."""
_GROUP_BYTES = 32 * 2**20
"""Bytes of the rows that are taken at a time: they stay in the second-level cache (40 to 126 MB) from pass to pass."""


@triton.jit
def _murmur32(bits):
    bits = (bits ^ (bits >> 16)) * 0x85EBCA6B
    bits = (bits ^ (bits >> 13)) * 0xC2B2AE35
    return bits ^ (bits >> 16)


@triton.jit
def exponential_noise(first_key, second_key, place):
    """Return exponential noise, float32, for the tokens at int32 places, under both halves of a key.

    There is no log1p without libdevice: with y = 1 - u as it is rounded, log(y) * u / (1 - y) is log(1 - u) to a few
    last places (Kahan; Goldberg 1991, "What every computer scientist should know", theorem 4).
    """
    bits = _murmur32(place.to(tl.uint32) ^ first_key.to(tl.uint32, bitcast=True))
    bits = _murmur32(bits ^ second_key.to(tl.uint32, bitcast=True))
    uniform = ((bits & 0x7FFFFFFF).to(tl.int32).to(tl.float32) + 0.5) * 4.656612873077393e-10  # 2^-31
    uniform = tl.minimum(uniform, 0.9999999403953552)  # 1 - 2^-24
    rest = 1 - uniform
    lost = tl.where(rest == 1, 1.0, 1 - rest)
    return tl.where(rest == 1, uniform, -tl.log(rest) * (uniform / lost))


@triton.jit
def _race(
    logits, stride, rows, temperatures, min_ps, keys, firsts, thresholds, winners, width,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr, TRUNCATED: tl.constexpr,
):  # fmt: skip
    """Store the winner of the race among a chunk's tokens that min-p and the threshold keep."""
    index, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    chunks = tl.num_programs(1)
    if tl.load(temperatures + index) == 0:
        return
    highest = number_of((highest_of(firsts, index, chunks, CHUNKS) >> 32).to(tl.int32))
    place = chunk * CHUNK + tl.arange(0, CHUNK)
    value = scaled_logits(logits, stride, rows, temperatures, index, place, width)
    weight = tl.exp(value - highest)
    kept = weight >= tl.load(min_ps + index)
    if TRUNCATED:
        kept = kept & (pattern_of(value) >= tl.load(thresholds + index))
    score = weight / exponential_noise(tl.load(keys + 2 * index), tl.load(keys + 2 * index + 1), place)
    # Where logits are NaN or infinite, the first weight that is NaN wins, as in torch.argmax.
    score = tl.where(kept | (weight != weight), score, -1.0)
    best = tl.max(with_place(tl.where(place < width, pattern_of(score), -(2**31)), place))
    tl.store(winners + index * chunks + chunk, best)


@triton.jit
def _winner(temperatures, firsts, winners, tokens, chunks, CHUNKS: tl.constexpr, RANDOM: tl.constexpr):
    """Store a row's token: the best of its chunks' winners, or if the row is greedy, of their likeliest tokens."""
    index = tl.program_id(0).to(tl.int64)
    best = highest_of(firsts, index, chunks, CHUNKS)
    if RANDOM:  # noqa: SIM102 (a constant, unlike what follows)
        if tl.load(temperatures + index) != 0:
            best = highest_of(winners, index, chunks, CHUNKS)
    tl.store(tokens + index, 0x7FFFFFFF - (best & 0xFFFFFFFF))


def draw_rows(
    logits: Tensor,
    rows: Tensor | None,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    keys: Tensor,
    random: bool = True,
    truncated: bool = True,
) -> Tensor:
    """Return token ids int64 [n] of some rows of logits [R, V]: argmax where temperature [n] is 0, else drawn as by
    `draw`.

    `rows` int64 [n], None = all. top_k int32 [n] (0 and less: all), top_p and min_p float32 [n] (1 and 0: all), keys
    int32 [n, 2] by `platforms.draw.noise_key`. The host may know that no row is `random` (all are greedy), or that none
    is `truncated` by top-k or top-p, which spares the kernels for it. Rows may come more than once.
    """
    count, width = len(temperature), logits.shape[1]
    assert logits.stride(1) == 1
    tokens = torch.empty(count, dtype=torch.int64, device=logits.device)
    if rows is None:
        rows = torch.arange(count, device=logits.device)
    size = max(1, _GROUP_BYTES // (4 * width))
    for start in range(0, count, size):
        part = slice(start, start + size)
        settings = temperature[part], top_k[part], top_p[part], min_p[part], keys[part]
        _draw_group(logits, rows[part], *settings, tokens[part], random, truncated)
    return tokens


def _draw_group(
    logits: Tensor,
    rows: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    keys: Tensor,
    tokens: Tensor,
    random: bool,
    truncated: bool,
) -> None:
    n, width = len(rows), logits.shape[1]
    chunks = triton.cdiv(width, _CHUNK)
    sizes = {"CHUNK": _CHUNK, "CHUNKS": triton.next_power_of_2(chunks)}
    of_rows = logits, logits.stride(0), rows, temperature
    firsts, winners = pair_of(logits, n, chunks, torch.int64)
    lows = logits.new_empty(n, chunks, dtype=torch.float32)
    extremes[n, chunks](*of_rows, firsts, lows, width, CHUNK=_CHUNK)
    if random:
        thresholds = thresholds_of(of_rows, (top_k, top_p, min_p), firsts, lows, _CHUNK) if truncated else lows
        _race[n, chunks](*of_rows, min_p, keys, firsts, thresholds, winners, width, TRUNCATED=truncated, **sizes)
    _winner[n,](temperature, firsts, winners, tokens, chunks, CHUNKS=sizes["CHUNKS"], RANDOM=random)
