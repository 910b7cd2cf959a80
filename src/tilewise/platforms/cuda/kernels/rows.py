"""Kernels that compute each row of activations, or each number, by itself; patches are made of pixels so, too.

All of them are bound by memory: each number is read once and written once, in pieces of 16 bytes a thread (8 numbers of
a model of 16 bits), and everything between happens in registers in float32. Intermediate results are rounded to the
dtype of the activations exactly where the reference ops store them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from tilewise.platforms.strides import row_steps

_BLOCK = 1024
"""Numbers of a program that works on numbers alone: 8 for each thread of 4 warps."""
_THREAD = 8
"""Numbers of a thread."""
_WARPS = 16
"""Warps of a program at most. A row of 8192 numbers then leaves 16 to each thread, and the widest, of 32768, 64."""


@dataclass(frozen=True, slots=True)
class StridedRows:
    """A tensor [..., width] as rows at two strides.

    Row i begins at i // inner * outer_stride + i % inner * inner_stride. So heads that are split out of a wider row are
    read in place: [N, heads, D] has N * heads rows, and `heads` of them are inner.
    """

    tensor: Tensor
    count: int
    inner: int
    outer_stride: int
    inner_stride: int

    @classmethod
    def of(cls, x: Tensor) -> StridedRows:
        levels = row_steps(x)
        if len(levels) > 2 or (x.shape[-1] > 1 and x.stride(-1) != 1):
            return cls.of(x.contiguous())
        count = x.shape[:-1].numel()
        if len(levels) < 2:
            return cls(x, count, 1, levels[0][1] if levels else 0, 0)
        (_, outer_stride), (inner, inner_stride) = levels
        return cls(x, count, inner, outer_stride, inner_stride)


@dataclass(frozen=True, slots=True)
class RowTile:
    """The whole rows of one program: several narrow ones, so that it has some 1024 numbers and whole warps."""

    rows: int
    width: int
    """A power of two that holds a row."""
    warps: int

    @classmethod
    def of(cls, width: int) -> RowTile:
        block = max(16, triton.next_power_of_2(width))
        rows = max(1, _BLOCK // block)
        return cls(rows, block, max(1, min(_WARPS, rows * block // (32 * _THREAD))))


@triton.jit(do_not_specialize=["rows"])
def _norm(
    x, scale, y, total, weight, bias, normed, rows, width, inner, outer_stride, inner_stride, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute RMS norm, or with a bias layer norm, of rows of x; with y, of x + scale * y, which is stored as `total`.

    Everything but x is contiguous. A row stays in registers from its only reading on, so that the mean is taken off
    before squares are summed, without a second pass over memory.
    """
    dtype = normed.dtype.element_ty
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    # Vectors are read for each row of the tile, from the first cache for all but one: read once, they would have to
    # be handed on through shared memory.
    place = tl.broadcast_to(tl.arange(0, BLOCK)[None, :], (ROWS, BLOCK))
    mask = (row < rows)[:, None] & (place < width)
    flat = row.to(tl.int64)[:, None] * width + place
    begin = (row // inner).to(tl.int64) * outer_stride + (row % inner).to(tl.int64) * inner_stride
    numbers = tl.load(x + begin[:, None] + place, mask=mask, other=0).to(tl.float32)
    if y is not None:
        added = tl.load(y + flat, mask=mask, other=0).to(tl.float32)
        if scale is not None:
            factor = tl.load(scale + place, mask=place < width, other=0).to(tl.float32)
            added = (factor * added).to(dtype).to(tl.float32)
        numbers = (numbers + added).to(dtype).to(tl.float32)
        tl.store(total + flat, numbers.to(dtype), mask=mask)
    factor = tl.load(weight + place, mask=place < width, other=0).to(tl.float32)
    if bias is not None:
        mean = tl.sum(numbers, axis=1) / width
        numbers = tl.where(mask, numbers - mean[:, None], 0)
    spread = tl.rsqrt(tl.sum(numbers * numbers, axis=1) / width + eps)[:, None]
    if bias is not None:
        addend = tl.load(bias + place, mask=place < width, other=0).to(tl.float32)
        result = numbers * spread * factor + addend
    else:
        result = (numbers * spread).to(dtype).to(tl.float32) * factor
    tl.store(normed + flat, result.to(dtype), mask=mask)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute `Ops.rms_norm` of x [..., width], whose rows may be parts of wider ones."""
    return _normed(x, None, None, weight, None, eps)[1]


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Compute `Ops.layer_norm` of x [..., width], whose rows may be parts of wider ones."""
    return _normed(x, None, None, weight, bias, eps)[1]


def add_rms_norm(x: Tensor, scale: Tensor | None, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Compute `Ops.add_rms_norm`."""
    return _normed(x, scale, y, weight, None, eps)


def add_layer_norm(
    x: Tensor, scale: Tensor | None, y: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Compute `Ops.add_layer_norm`."""
    return _normed(x, scale, y, weight, bias, eps)


def _normed(
    x: Tensor, scale: Tensor | None, y: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Return x + scale * y, or x itself where there is no y, and its norm."""
    normed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = None if y is None else torch.empty_like(normed)
    if x.numel():
        y = None if y is None else y.contiguous()
        rows, tile = StridedRows.of(x), RowTile.of(x.shape[-1])
        _norm[(triton.cdiv(rows.count, tile.rows),)](
            rows.tensor, scale, y, total, weight, bias, normed,
            rows.count, x.shape[-1], rows.inner, rows.outer_stride, rows.inner_stride, eps,
            ROWS=tile.rows, BLOCK=tile.width, num_warps=tile.warps,
        )  # fmt: skip
    return x if total is None else total, normed


@triton.jit
def _add_scaled(x, scale, y, total, width, BLOCK: tl.constexpr):
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    within = place < width
    flat = tl.program_id(0).to(tl.int64) * width + place
    added = tl.load(y + flat, mask=within).to(tl.float32)
    if scale is not None:
        factor = tl.load(scale + place, mask=within).to(tl.float32)
        added = (factor * added).to(total.dtype.element_ty).to(tl.float32)
    numbers = tl.load(x + flat, mask=within).to(tl.float32)
    tl.store(total + flat, (numbers + added).to(total.dtype.element_ty), mask=within)


def add_scaled(x: Tensor, scale: Tensor | None, y: Tensor) -> Tensor:
    """Compute `Ops.add_scaled`."""
    total = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel():
        width = x.shape[-1]
        grid = (x.numel() // width, triton.cdiv(width, _BLOCK))
        _add_scaled[grid](x.contiguous(), scale, y.contiguous(), total, width, BLOCK=_BLOCK)
    return total


@triton.jit
def _gelu(x, out, count, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    within = place < count
    numbers = tl.load(x + place, mask=within).to(tl.float32)
    result = 0.5 * numbers * (1 + tl.erf(numbers * 0.7071067811865476))
    tl.store(out + place, result.to(out.dtype.element_ty), mask=within)


def gelu(x: Tensor) -> Tensor:
    """Compute `Ops.gelu`."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel():
        _gelu[(triton.cdiv(x.numel(), _BLOCK),)](x.contiguous(), out, x.numel(), BLOCK=_BLOCK)
    return out


@triton.jit
def _silu_mul(gate_up, out, width, BLOCK: tl.constexpr):
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    within = place < width
    row = tl.program_id(0).to(tl.int64)
    gate = tl.load(gate_up + row * 2 * width + place, mask=within).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + place, mask=within).to(tl.float32)
    silu = (gate / (1 + tl.exp(-gate))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * width + place, (silu * up).to(out.dtype.element_ty), mask=within)


def silu_mul(gate_up: Tensor) -> Tensor:
    """Compute `Ops.silu_mul`."""
    width = gate_up.shape[-1] // 2
    out = gate_up.new_empty(*gate_up.shape[:-1], width)
    if out.numel():
        _silu_mul[out.numel() // width, triton.cdiv(width, _BLOCK)](gate_up.contiguous(), out, width, BLOCK=_BLOCK)
    return out


@triton.jit
def _scatter_rows(target, rows, source, source_rows, width, target_stride, source_stride, BLOCK: tl.constexpr):
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    within = place < width
    to, come = tl.load(rows + tl.program_id(0)), tl.load(source_rows + tl.program_id(0))
    numbers = tl.load(source + come * source_stride + place, mask=within)
    tl.store(target + to * target_stride + place, numbers, mask=within)


def scatter_rows(target: Tensor, rows: Tensor, source: Tensor, source_rows: Tensor) -> None:
    """Compute `Ops.scatter_rows` of target and source [.., width], rows and source_rows int64 [n].

    No row may come twice in `rows`.
    """
    width = target.shape[1]
    assert target.stride(1) == source.stride(1) == 1
    if rows.numel() and width:
        _scatter_rows[len(rows), triton.cdiv(width, _BLOCK)](
            target, rows, source, source_rows, width, target.stride(0), source.stride(0), BLOCK=_BLOCK
        )


@triton.jit
def _patchify(pixels, mean, std, out, height, width, PATCH: tl.constexpr, BLOCK: tl.constexpr):
    """Write BLOCK numbers of one tile, in the order of the result: patch, channel, line, column.

    Writes are in order. The bytes that are read lie in lines of 3 * PATCH; the others of their cache lines are read by
    neighbouring programs.
    """
    tile = tl.program_id(0).to(tl.int64) * height * width * 3
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = place < height * width * 3
    patch, within = place // (3 * PATCH * PATCH), place % (3 * PATCH * PATCH)
    channel, cell = within // (PATCH * PATCH), within % (PATCH * PATCH)
    across = width // PATCH
    line = patch // across * PATCH + cell // PATCH
    column = patch % across * PATCH + cell % PATCH
    numbers = tl.load(pixels + tile + (line * width + column) * 3 + channel, mask=mask, other=0).to(tl.float32)
    centred = tl.div_rn(numbers, tl.full(numbers.shape, 255.0, tl.float32)) - tl.load(mean + channel)
    result = tl.div_rn(centred, tl.load(std + channel))
    tl.store(out + tile + place, result.to(out.dtype.element_ty), mask=mask)


def patchify(pixels: Tensor, patch: int, mean: Tensor, std: Tensor, out_dtype: torch.dtype = torch.float32) -> Tensor:
    """Compute `Ops.patchify` in any float dtype: uint8 [tiles, H, W, 3] -> [tiles, H/p * W/p, 3*p*p], channel-major.

    mean, std [3] in any float dtype.
    """
    tiles, height, width, _ = pixels.shape
    patches = (height // patch) * (width // patch)
    out = torch.empty(tiles, patches, 3 * patch * patch, dtype=out_dtype, device=pixels.device)
    if out.numel():
        grid = (tiles, triton.cdiv(height * width * 3, _BLOCK))
        _patchify[grid](pixels.contiguous(), mean.float(), std.float(), out, height, width, PATCH=patch, BLOCK=_BLOCK)
    return out
