"""Rows of activations rounded to 8 bits, for products of such numbers.

A number is read once and its code written once; a row, or a group of its numbers, stays in registers from the search
for its largest number to its rounding. Codes and scales are bit by bit those of the formulas that are named below.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tilewise.platforms.cuda.kernels.codes import e4m3_of, int8_of
from tilewise.platforms.cuda.kernels.rows import RowTile, StridedRows
from tilewise.platforms.forms import StaticRows

GROUP = 128
"""Inputs that share a scale in `fp8_groups`."""
_BLOCK = 1024


@triton.jit(do_not_specialize=["rows"])
def _round_groups(
    x, codes, scales, rows, width, groups, inner, outer_stride, inner_stride,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """ROWS groups of BLOCK numbers: a row has `groups` of them, the last of which may have fewer.

    Groups are counted through all rows. Where a row is a group, BLOCK holds the whole of it.
    """
    unit, place = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    row, group = unit // groups, unit % groups
    column = group[:, None] * BLOCK + place[None, :]
    mask = (row < rows)[:, None] & (column < width)
    begin = (row // inner).to(tl.int64) * outer_stride + (row % inner).to(tl.int64) * inner_stride
    numbers = tl.load(x + begin[:, None] + column, mask=mask, other=0).to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(numbers), axis=1), 1e-30)
    # No maximum takes notice of what is no number. A group with one has no scale, so that its products are none either.
    spoilt = tl.max((numbers != numbers).to(tl.int32), axis=1) > 0
    largest = tl.where(spoilt, float("nan"), largest)
    levels = tl.full(largest.shape, LARGEST, tl.float32)
    tl.store(scales + unit, tl.div_rn(largest, levels), mask=row < rows)
    numbers = tl.clamp(numbers * tl.div_rn(levels, largest)[:, None], -LARGEST, LARGEST)
    rounded = int8_of(numbers) if LARGEST == 127 else e4m3_of(numbers)
    tl.store(codes + row.to(tl.int64)[:, None] * width + column, rounded, mask=mask)


def int8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """`weights.quantise_rows`: [..., width] -> int8 [n, width] and float32 scales [n, 1]."""
    return _rounded(x, torch.int8, RowTile.of(x.shape[-1]), 1)


def fp8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """`kv_cache.quantise` of rows: [..., width] -> float8_e4m3fn [n, width] and float32 scales [n, 1]."""
    return _rounded(x, torch.float8_e4m3fn, RowTile.of(x.shape[-1]), 1)


def fp8_groups(x: Tensor) -> tuple[Tensor, Tensor]:
    """`kv_cache.quantise` of each `GROUP` inputs: [..., width] -> float8_e4m3fn [n, width], float32 [n, groups]."""
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
    """Numbers are clamped before they are rounded to [low, high], what `offset` leaves of [-128, 127]."""
    row, place = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = place < width
    begin = (row // inner).to(tl.int64) * outer_stride + (row % inner).to(tl.int64) * inner_stride
    numbers = tl.load(x + begin + place, mask=mask, other=0).to(tl.float32)
    numbers = tl.div_rn(numbers, tl.full(numbers.shape, scale, tl.float32))
    rounded = int8_of(tl.clamp(numbers, low, high)) + offset
    tl.store(codes + row.to(tl.int64) * width + place, rounded.to(tl.int8), mask=mask)


def int8_rows_static(x: Tensor, static: StaticRows) -> Tensor:
    """`weights.rounded_rows`: [..., width] -> int8 [n, width]."""
    count, width = x.shape[:-1].numel(), x.shape[-1]
    codes = torch.empty(count, width, dtype=torch.int8, device=x.device)
    if codes.numel():
        rows = StridedRows.of(x)
        _round_static[count, triton.cdiv(width, _BLOCK)](
            rows.tensor, codes, width, rows.inner, rows.outer_stride, rows.inner_stride,
            static.scale, static.offset, -128.0 - static.offset, 127.0 - static.offset, BLOCK=_BLOCK,
        )  # fmt: skip
    return codes
