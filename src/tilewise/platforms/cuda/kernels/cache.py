"""One kernel that norms and rotates queries and keys, and writes keys and values to the paged cache."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tilewise.platforms.cuda.kernels.rounding import e4m3_of, int8_of
from tilewise.platforms.kv_cache import LARGEST, LayerCache, PagedLayout
from tilewise.platforms.ops import HeadNorms

_NUMBERS = 1024
"""Numbers of a program: some heads of one token."""
_WARPS = 2


@triton.jit
def _halves(x, head, heads, head_stride, half, HALF: tl.constexpr):
    """Load heads of one token in float32: their first halves, and their second."""
    place = tl.arange(0, HALF)
    mask = (head < heads)[:, None] & (place < half)[None, :]
    begin = x + (head * head_stride)[:, None] + place[None, :]
    first = tl.load(begin, mask=mask, other=0).to(tl.float32)
    return first, tl.load(begin + half, mask=mask, other=0).to(tl.float32)


@triton.jit
def _normed(first, second, weight, half, width, eps, HALF: tl.constexpr, dtype: tl.constexpr):
    """Return heads in float32, divided by the root of their mean square and multiplied by a weight, rounded after
    either. Each head's numbers are in one warp, which sums them up.
    """
    place = tl.broadcast_to(tl.arange(0, HALF)[None, :], first.shape)
    spread = tl.rsqrt((tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)) / width + eps)[:, None]
    first = (first * spread).to(dtype).to(tl.float32) * tl.load(weight + place, mask=place < half, other=0)
    second = (second * spread).to(dtype).to(tl.float32) * tl.load(weight + half + place, mask=place < half, other=0)
    return first.to(dtype).to(tl.float32), second.to(dtype).to(tl.float32)


@triton.jit
def _rotated(first, second, cos, sin, token, half, HALF: tl.constexpr, dtype: tl.constexpr):
    """Return pairs turned by their angles, and rounded as they would be stored.

    Cosines and sines are read for each head, from the first cache for all but one: read once, they would have to be
    handed on through shared memory.
    """
    place = tl.broadcast_to(tl.arange(0, HALF)[None, :], first.shape)
    cosine = tl.load(cos + token * half + place, mask=place < half, other=0)
    sine = tl.load(sin + token * half + place, mask=place < half, other=0)
    turned = (first * cosine - second * sine).to(dtype).to(tl.float32)
    return turned, (second * cosine + first * sine).to(dtype).to(tl.float32)


@triton.jit
def _keep(first, second, numbers, scales, slot, head, heads, half, HALF: tl.constexpr, LARGEST: tl.constexpr):
    """Write heads of one token to its slot of the keys, or of the values: as floats, or rounded as by `quantise`.

    Each head's numbers are in one warp, which finds the largest of them.
    """
    place = tl.arange(0, HALF)
    mask = (head < heads)[:, None] & (place < half)[None, :]
    if LARGEST != 0:
        largest = tl.max(tl.maximum(tl.abs(first), tl.abs(second)), axis=1)
        largest = tl.maximum(largest, 1e-30)
        tl.store(scales + slot * heads + head, tl.div_rn(largest, LARGEST), mask=head < heads)
        factor = tl.div_rn(tl.full(largest.shape, LARGEST, tl.float32), largest)[:, None]
        first, second = tl.clamp(first * factor, -LARGEST, LARGEST), tl.clamp(second * factor, -LARGEST, LARGEST)
    begin = numbers + slot * heads * 2 * half + (head * 2 * half)[:, None] + place[None, :]
    if LARGEST == 0:
        tl.store(begin, first.to(numbers.dtype.element_ty), mask=mask)
        tl.store(begin + half, second.to(numbers.dtype.element_ty), mask=mask)
    elif LARGEST == 127:
        tl.store(begin, int8_of(first), mask=mask)
        tl.store(begin + half, int8_of(second), mask=mask)
    else:
        tl.store(begin, e4m3_of(first), mask=mask)
        tl.store(begin + half, e4m3_of(second), mask=mask)


@triton.jit
def _rope_into_cache(
    query, key, value, cos, sin, slots, turned, numbers, scales, query_norm, key_norm, eps,
    query_stride, query_head, key_stride, key_head, value_stride, value_head, numbers_stride, scales_stride,
    heads, kv_heads, half, HEADS: tl.constexpr, HALF: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """Rotate and write HEADS heads of one token: of its programs, the first have queries, then come those of keys, then
    those of values. With weights of norms, queries and keys are normed first.

    `query_stride` lies between tokens and `query_head` between heads, `numbers_stride` and `scales_stride` between the
    keys and the values of a cache.
    """
    dtype: tl.constexpr = query.dtype.element_ty
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    of_query, of_key = tl.cdiv(heads, HEADS), tl.cdiv(kv_heads, HEADS)
    if part < of_query:
        head = part * HEADS + tl.arange(0, HEADS)
        first, second = _halves(query + token * query_stride, head, heads, query_head, half, HALF)
        if query_norm is not None:
            first, second = _normed(first, second, query_norm, half, 2 * half, eps, HALF, dtype)
        first, second = _rotated(first, second, cos, sin, token, half, HALF, dtype)
        place = tl.arange(0, HALF)
        mask = (head < heads)[:, None] & (place < half)[None, :]
        begin = turned + token * heads * 2 * half + (head * 2 * half)[:, None] + place[None, :]
        tl.store(begin, first.to(dtype), mask=mask)
        tl.store(begin + half, second.to(dtype), mask=mask)
    elif part < of_query + of_key:
        head = (part - of_query) * HEADS + tl.arange(0, HEADS)
        first, second = _halves(key + token * key_stride, head, kv_heads, key_head, half, HALF)
        if key_norm is not None:
            first, second = _normed(first, second, key_norm, half, 2 * half, eps, HALF, dtype)
        first, second = _rotated(first, second, cos, sin, token, half, HALF, dtype)
        _keep(first, second, numbers, scales, tl.load(slots + token), head, kv_heads, half, HALF, LARGEST)
    else:
        head = (part - of_query - of_key) * HEADS + tl.arange(0, HEADS)
        first, second = _halves(value + token * value_stride, head, kv_heads, value_head, half, HALF)
        numbers += numbers_stride
        if LARGEST != 0:
            scales += scales_stride
        _keep(first, second, numbers, scales, tl.load(slots + token), head, kv_heads, half, HALF, LARGEST)


def rope_into_cache(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    cache: LayerCache,
    layout: PagedLayout,
    norms: HeadNorms | None = None,
) -> Tensor:
    """Compute `Ops.rope_into_cache` of heads [N, A or K, D] at any strides between tokens and between heads.

    Without `norms`, the numbers are bit by bit the reference's: products of a rotation are rounded before they are
    added, unlike in a fused multiply-add, since a key that lies halfway between two codes would show the difference.
    """
    (tokens, heads, width), kv_heads = query.shape, key.shape[1]
    turned = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    if not query.numel():
        return turned
    numbers, scales = (cache, None) if isinstance(cache, Tensor) else (cache.numbers, cache.scales)
    largest = LARGEST.get(numbers.dtype, 0.0)
    if numbers.dtype == torch.float8_e4m3fn:
        numbers = numbers.view(torch.uint8)
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    half = triton.next_power_of_2(width // 2)
    block = max(1, _NUMBERS // (2 * half))
    parts = triton.cdiv(heads, block) + 2 * triton.cdiv(kv_heads, block)
    _rope_into_cache[tokens, parts](
        query, key, value, cos, sin, layout.kv_slots, turned, numbers, scales,
        *((None, None, 0.0) if norms is None else (norms.query, norms.key, norms.eps)),
        *query.stride()[:2], *key.stride()[:2], *value.stride()[:2],
        numbers.stride(0), 0 if scales is None else scales.stride(0),
        heads, kv_heads, width // 2, HEADS=block, HALF=half, LARGEST=largest,
        num_warps=_WARPS, enable_fp_fusion=False,
    )  # fmt: skip
    return turned
