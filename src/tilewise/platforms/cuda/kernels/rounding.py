"""Rows of activations rounded to 8 bits, for products of such numbers and for the cache.

A number is read once and its code written once; a row, or a group of its numbers, stays in registers from the search
for its largest number to its rounding. Codes and scales are bit by bit those of the formulas that are named below.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tilewise.platforms.cuda.kernels.rows import RowTile, StridedRows
from tilewise.platforms.forms import StaticRows


@triton.jit
def int8_of(numbers):
    """Round float32 to int8. What is beyond [-128, 127], up to 2^22, gives the low 8 bits of the whole number.

    At 1.5 * 2^23 neighbours of float32 are 1 apart, so that an addition rounds, and the sum's low bits are the result
    in two's complement. Numbers come clamped, which also keeps the addition from becoming part of a multiplication.
    """
    return (numbers + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def e4m3_of(numbers):
    """Round float32 within [-448, 448] to uint8, the bits of float8_e4m3fn.

    The conversion that cards have since Ada is not used, so that older ones keep such numbers too, and all of them the
    same. Beside what a kernel waits for memory, the few operations on integers are free.

    A mantissa of 23 bits becomes one of 3: half of the last place that stays is added, less its least part where that
    place is even; a carry raises the exponent by itself, whose bias falls from 127 to 7. Below 2^-6, neighbours are
    2^-9 apart, as those of float32 are at 2^14, where an addition rounds.
    """
    bits = numbers.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)
    small = (size.to(tl.float32, bitcast=True) + 16384.0).to(tl.int32, bitcast=True) & 0xFF
    code = tl.where(size < 0x3C800000, small, normal)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def e4m3_halves(codes):
    """Return 256ths of the numbers whose bits of float8_e4m3fn are uint8 codes, in float16; NaN becomes 480 / 256.

    For cards without that type. Moved to where float16 has its sign, exponent and mantissa, the bits are those of the
    number divided by 2^(15 - 7), the distance of the exponents' biases, subnormal numbers included.
    """
    bits = ((codes & 0x80).to(tl.uint16) << 8) | ((codes & 0x7F).to(tl.uint16) << 7)
    return bits.to(tl.float16, bitcast=True)


GROUP = 128
"""Inputs that share a scale in `fp8_groups`."""
_BLOCK = 1024


@triton.jit(do_not_specialize=["rows"])
def _round_groups(
    x, codes, scales, rows, width, groups, inner, outer_stride, inner_stride,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """Round ROWS groups of BLOCK numbers: a row has `groups` of them, the last of which may have fewer.

    Groups are counted through all rows. Where a row is a group, BLOCK holds the whole of it.
    """
    unit, place = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    row, group = unit // groups, unit % groups
    column = group[:, None] * BLOCK + place[None, :]
    mask = (row < rows)[:, None] & (column < width)
    begin = (row // inner).to(tl.int64) * outer_stride + (row % inner).to(tl.int64) * inner_stride
    numbers = tl.load(x + begin[:, None] + column, mask=mask, other=0).to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(numbers), axis=1), 1e-30)
    # A maximum takes no notice of NaN. A group with one gets NaN for its scale, so that its products are NaN as well.
    spoilt = tl.max((numbers != numbers).to(tl.int32), axis=1) > 0
    largest = tl.where(spoilt, float("nan"), largest)
    levels = tl.full(largest.shape, LARGEST, tl.float32)
    tl.store(scales + unit, tl.div_rn(largest, levels), mask=row < rows)
    numbers = tl.clamp(numbers * tl.div_rn(levels, largest)[:, None], -LARGEST, LARGEST)
    rounded = int8_of(numbers) if LARGEST == 127 else e4m3_of(numbers)
    tl.store(codes + row.to(tl.int64)[:, None] * width + column, rounded, mask=mask)


def int8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `weights.quantise_rows`: [..., width] -> int8 [n, width] and float32 scales [n, 1]."""
    return _rounded(x, torch.int8, RowTile.of(x.shape[-1]), 1)


def fp8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `kv_cache.quantise` of rows: [..., width] -> float8_e4m3fn [n, width] and float32 scales [n, 1]."""
    return _rounded(x, torch.float8_e4m3fn, RowTile.of(x.shape[-1]), 1)


def fp8_groups(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `kv_cache.quantise` of each `GROUP` inputs: [..., width] -> float8_e4m3fn [n, width] and float32 scales
    [n, groups].
    """
    return _rounded(x, torch.float8_e4m3fn, RowTile.of(GROUP), triton.cdiv(x.shape[-1], GROUP))


def _rounded(x: Tensor, dtype: torch.dtype, tile: RowTile, groups: int) -> tuple[Tensor, Tensor]:
    count, width = x.shape[:-1].numel(), x.shape[-1]
    codes = torch.empty(count, width, dtype=dtype, device=x.device)
    scales = torch.empty(count, groups, dtype=torch.float32, device=x.device)
    if codes.numel():
        rows = StridedRows.of(x)
        _round_groups[(triton.cdiv(count * groups, tile.rows),)](
            rows.tensor, codes if dtype == torch.int8 else codes.view(torch.uint8), scales,
            count, width, groups, rows.inner, rows.outer_stride, rows.inner_stride,
            ROWS=tile.rows, BLOCK=tile.width, LARGEST=127.0 if dtype == torch.int8 else 448.0, num_warps=tile.warps,
        )  # fmt: skip
    return codes, scales


@triton.jit
def _round_static(
    x, codes, width, inner, outer_stride, inner_stride, scale, offset, low, high, BLOCK: tl.constexpr
):  # fmt: skip
    """Round numbers by a static scale, clamped before to [low, high], which with `offset` becomes [-128, 127]."""
    row, place = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = place < width
    begin = (row // inner).to(tl.int64) * outer_stride + (row % inner).to(tl.int64) * inner_stride
    numbers = tl.load(x + begin + place, mask=mask, other=0).to(tl.float32)
    numbers = tl.div_rn(numbers, tl.full(numbers.shape, scale, tl.float32))
    rounded = int8_of(tl.clamp(numbers, low, high)) + offset
    tl.store(codes + row.to(tl.int64) * width + place, rounded.to(tl.int8), mask=mask)


def int8_rows_static(x: Tensor, static: StaticRows) -> Tensor:
    """Compute `weights.rounded_rows`: [..., width] -> int8 [n, width]."""
    count, width = x.shape[:-1].numel(), x.shape[-1]
    codes = torch.empty(count, width, dtype=torch.int8, device=x.device)
    if codes.numel():
        rows = StridedRows.of(x)
        _round_static[count, triton.cdiv(width, _BLOCK)](
            rows.tensor, codes, width, rows.inner, rows.outer_stride, rows.inner_stride,
            static.scale, static.offset, -128.0 - static.offset, 127.0 - static.offset, BLOCK=_BLOCK,
        )  # fmt: skip
    return codes
