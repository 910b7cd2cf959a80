"""Products with quantised weights: tiles, splits of the inputs and the finishing of sums, which all of them share; and
those of rows and matrices of 8 bits on tensor cores, whole numbers (W8A8), and float8_e4m3fn with itself.

A program makes a tile of the result, [outputs, rows] with the weights as the left operand of `tl.dot`. That way round,
few rows fill the narrow side of a tensor core's instruction (8 to 256 columns) and weights its broad one (64 rows on
Hopper), and weights that are decoded in registers may stay there: only the left operand of Hopper's instructions can.

Where outputs alone give too few programs to keep a card's memory busy, each makes sums over a part of the inputs
(split K). Parts are added up in their order by a second kernel, so that results do not depend on which came first.

Operands of 8 bits both go from memory through a pipeline in shared memory to the tensor cores without a change, 128
inputs a step. Of few rows the time is that of reading the matrix; of many, that of the tensor cores, which multiply
numbers of 8 bits twice as fast as of 16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from tilewise.platforms.cuda import Card

_STRIP = 8
"""Tiles of rows in a strip (`tile_of`)."""
_BLOCK = 1024
"""Outputs of a program that adds up parts."""
_LEAST_STEPS = 4
"""Least steps of a part: a pipeline has to fill and to run empty in each."""


@dataclass(frozen=True, slots=True)
class ProductTile:
    """The sizes of a program: outputs and rows of its tile, warps, and stages of its pipeline."""

    outputs: int
    rows: int
    warps: int
    stages: int
    """Steps over the inputs whose numbers are in shared memory or on their way there."""
    programs: int = 2
    """Programs a processor at which splits of the inputs aim."""


@dataclass(frozen=True, slots=True)
class Split:
    """The number of parts that the inputs are cut into, and of steps over them in each; the last may have fewer."""

    parts: int
    steps: int

    @classmethod
    def of(cls, steps: int, tiles: int, tile: ProductTile, card: Card) -> Split:
        parts = max(1, min(tile.programs * card.processors // tiles, steps // _LEAST_STEPS))
        each = triton.cdiv(steps, parts)
        return cls(triton.cdiv(steps, each), each)


@dataclass(frozen=True, slots=True)
class Epilogue:
    """The finishing of sums: (sum + addend) * (row scale * scale) + bias, in this order and in float32, then rounded to
    the result's dtype and, with `gelu`, taken through the exact GELU of that; whatever is None is left out.
    """

    row_scales: Tensor | None = None
    """float32 [rows]."""
    scales: Tensor | None = None
    """float32 [outputs]."""
    addend: Tensor | None = None
    """int32 [outputs]."""
    bias: Tensor | None = None
    """[outputs] in any float dtype."""
    gelu: bool = False

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.row_scales, self.scales, self.addend, self.bias


def sums_like(out: Tensor, parts: int, dtype: torch.dtype) -> Tensor:
    """Return the tensor for a product's sums: the result [rows, outputs] itself, or parts in the dtype of the sums."""
    return out if parts == 1 else out.new_empty((parts, *out.shape), dtype=dtype)


def add_parts(parts: Tensor, out: Tensor, epilogue: Epilogue) -> None:
    """Add up parts [number, rows, outputs] into out [rows, outputs], and finish sums as `epilogue` says."""
    count, rows, outputs = parts.shape
    grid = (rows, triton.cdiv(outputs, _BLOCK))
    _add_parts[grid](
        *(parts, out, *epilogue.tensors, count, rows, outputs),
        GELU=epilogue.gelu,
        BLOCK=_BLOCK,
        enable_fp_fusion=False,
    )


@triton.jit(do_not_specialize=["count", "rows"])
def _add_parts(
    parts, out, row_scales, scales, addend, bias, count, rows, outputs, GELU: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0)
    output = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = output < outputs
    place = row.to(tl.int64) * outputs + output
    total = tl.load(parts + place, mask=inside, other=0)
    for part in range(1, count):
        total += tl.load(parts + part * rows.to(tl.int64) * outputs + place, mask=inside, other=0)
    y = finished(total, row, output, rows, outputs, row_scales, scales, addend, bias, out.dtype.element_ty, GELU)
    tl.store(out + place, y, mask=inside)


@triton.jit
def tile_of(rows, outputs, OUTPUTS: tl.constexpr, ROWS: tl.constexpr, STRIP: tl.constexpr = _STRIP):
    """Return the first output and the first row of a program's tile.

    Programs that run at the same time share weights and rows in the second-level cache: tiles are counted in strips of
    some tiles of rows, in which the rows change first.
    """
    program = tl.program_id(0)
    across = tl.cdiv(outputs, OUTPUTS)
    down = tl.cdiv(rows, ROWS)
    strip = program // (STRIP * across)
    height = min(down - strip * STRIP, STRIP)
    within = program - strip * STRIP * across
    return within // height * OUTPUTS, (strip * STRIP + within % height) * ROWS


@triton.jit
def finished(
    sums, row, output, rows, outputs, row_scales, scales, addend, bias, DTYPE: tl.constexpr, GELU: tl.constexpr
):
    """Return what `Epilogue` makes of sums; row and output are indices that broadcast to the shape of the sums."""
    inside = output < outputs
    if addend is not None:
        sums += tl.load(addend + output, mask=inside, other=0)
    y = sums.to(tl.float32)
    if scales is not None:
        scale = tl.load(scales + output, mask=inside, other=0).to(tl.float32)
        if row_scales is not None:
            scale = tl.load(row_scales + row, mask=row < rows, other=0) * scale
        y = y * scale
    if bias is not None:
        y = y + tl.load(bias + output, mask=inside, other=0).to(tl.float32)
    y = y.to(DTYPE)
    if GELU:
        stored = y.to(tl.float32)
        y = (stored * 0.5 * (1 + tl.math.erf(stored * 0.7071067811865476))).to(DTYPE)
    return y


@triton.jit
def store_sums(
    sums, output, row, rows, outputs, out, row_scales, scales, addend, bias, SPLIT: tl.constexpr, GELU:
    tl.constexpr,
):  # fmt: skip
    """Store sums [outputs, rows] of a tile in the result [rows, outputs], or with `SPLIT` in this part's sums."""
    inside = (output < outputs)[:, None] & (row < rows)[None, :]
    place = row[None, :].to(tl.int64) * outputs + output[:, None]
    if SPLIT:
        out += tl.program_id(1).to(tl.int64) * rows * outputs
        tl.store(out + place, sums, mask=inside)
    else:
        y = finished(
            *(sums, row[None, :], output[:, None], rows, outputs),
            *(row_scales, scales, addend, bias, out.dtype.element_ty, GELU),
        )
        tl.store(out + place, y, mask=inside)


STEP = 128
"""Inputs of a step, and of a block of FP8 that has its own scale."""


@triton.jit(do_not_specialize=["rows", "steps"])
def _byte_product(
    x, matrix, out, block_scales, row_block_scales, row_scales, scales, addend, bias, rows, outputs, inputs,
    row_stride, matrix_stride, blocks, steps, EVEN: tl.constexpr, SPLIT: tl.constexpr, GELU: tl.constexpr, WIDE:
    tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Make one tile of the result or, with SPLIT, one part of its sums: see above."""
    first_output, first_row = tile_of(rows, outputs, OUTPUTS, ROWS)
    output = first_output + tl.arange(0, OUTPUTS)
    row = first_row + tl.arange(0, ROWS)
    place = tl.arange(0, STEP)
    # Beyond an edge stands the last output or row once more, which costs nothing; only stores know of edges.
    near_output, near_row = tl.minimum(output, outputs - 1), tl.minimum(row, rows - 1)
    weights = matrix + near_output[:, None].to(tl.int64) * matrix_stride + place[None, :]
    numbers = x + near_row[:, None].to(tl.int64) * row_stride + place[None, :]
    WHOLE: tl.constexpr = x.dtype.element_ty == tl.int8
    total = tl.zeros((OUTPUTS, ROWS), dtype=tl.int32 if WHOLE else tl.float32)
    start = tl.program_id(1) * steps
    for step in range(start, min(start + steps, tl.cdiv(inputs, STEP))):
        first = step * STEP
        if EVEN:
            w = tl.load(weights + first)
            a = tl.load(numbers + first)
        else:
            inside = (first + place < inputs)[None, :]
            w = tl.load(weights + first, mask=inside, other=0.0)
            a = tl.load(numbers + first, mask=inside, other=0.0)
        if WHOLE:
            total = tl.dot(w, tl.trans(a), total, out_dtype=tl.int32)
        elif block_scales is None:
            # Hopper's tensor cores add products of FP8 with about 14 bits (DeepSeek-V3, arXiv 2412.19437, 3.3.2), and
            # so do Ada's (SageAttention2, arXiv 2411.10958): the sums of a step are added to those of all in float32.
            # For Hopper's instructions Triton does it; it gives those of desktop cards one accumulator for all steps.
            if WIDE:
                total = tl.dot(w, tl.trans(a), total, max_num_imprecise_acc=STEP)
            else:
                total += tl.dot(w, tl.trans(a), max_num_imprecise_acc=STEP)
        else:
            scale = tl.load(block_scales + step * outputs + near_output)
            row_scale = tl.load(row_block_scales + step + near_row * blocks)
            total += tl.dot(w, tl.trans(a), max_num_imprecise_acc=STEP) * (scale[:, None] * row_scale[None, :])
    store_sums(total, output, row, rows, outputs, out, row_scales, scales, addend, bias, SPLIT, GELU)


def int8_product(x: Tensor, matrix: Tensor, dtype: torch.dtype, epilogue: Epilogue, card: Card) -> Tensor:
    """Multiply int8 x [rows, inputs] by matrix [outputs, inputs], finished by `epilogue` -> `dtype` [rows, outputs].

    The columns of the matrix may be followed by others, which are not read. Sums are exact, and what is made of them
    is rounded where `weights.Int8Weight` rounds it: results are the same, except of GELU, whose error function is the
    card's. A row's result depends on no other row.
    """
    return _product(x, matrix, dtype, epilogue, card, _int8_tile(len(x), epilogue.gelu, card))


def fp8_product(
    x: Tensor,
    matrix: Tensor,
    dtype: torch.dtype,
    epilogue: Epilogue,
    card: Card,
    block_scales: Tensor | None = None,
    row_block_scales: Tensor | None = None,
) -> Tensor:
    """Multiply x [rows, inputs] by matrix [outputs, inputs], both float8_e4m3fn, finished by `epilogue` -> `dtype`
    [rows, outputs].

    With scales of blocks of 128 inputs, float32 `block_scales` [blocks, outputs] and `row_block_scales` [rows, blocks],
    the sums of each block are scaled before they are added up, in float32; without, in the epilogue alone. How the
    inputs are split, and so the order of the sums, depends on how many rows there are.
    """
    tile = _fp8_tile(len(x), block_scales is not None, card)
    return _product(x, matrix, dtype, epilogue, card, tile, block_scales, row_block_scales)


def _product(
    x: Tensor,
    matrix: Tensor,
    dtype: torch.dtype,
    epilogue: Epilogue,
    card: Card,
    tile: ProductTile,
    block_scales: Tensor | None = None,
    row_block_scales: Tensor | None = None,
) -> Tensor:
    (rows, inputs), outputs = x.shape, len(matrix)
    out = x.new_empty((rows, outputs), dtype=dtype)
    if not out.numel():
        return out
    tiles = triton.cdiv(outputs, tile.outputs) * triton.cdiv(rows, tile.rows)
    split = Split.of(triton.cdiv(inputs, STEP), tiles, tile, card)
    sums = sums_like(out, split.parts, torch.int32 if x.dtype == torch.int8 else torch.float32)
    _byte_product[tiles, split.parts](
        x, matrix, sums, block_scales, row_block_scales, *epilogue.tensors,
        rows, outputs, inputs, x.stride(0), matrix.stride(0), triton.cdiv(inputs, STEP), split.steps,
        EVEN=inputs % STEP == 0, SPLIT=split.parts > 1, GELU=epilogue.gelu, WIDE=card.has_wide_tiles,
        OUTPUTS=tile.outputs, ROWS=tile.rows, STEP=STEP, num_warps=tile.warps, num_stages=tile.stages,
        enable_fp_fusion=False,
    )  # fmt: skip
    if split.parts > 1:
        add_parts(sums, out, epilogue)
    return out


def _int8_tile(rows: int, gelu: bool, card: Card) -> ProductTile:
    """Choose the tile of a product of int8.

    Few rows take 8 KB of the matrix a step in several programs a processor, so that some 100 KB are on their way at any
    time. Many take tiles as large as accumulators fit into registers, so that each number is read from shared memory
    least often; only Hopper's instructions read both operands from there and leave registers for 256 rows.
    """
    if rows <= 64:
        return _few_rows(rows)
    if rows > 512 and card.capability[0] == 9 and not gelu:
        return ProductTile(128, 256, warps=8, stages=3, programs=1)
    return ProductTile(128, 128, warps=8, stages=4 if card.has_wide_tiles else 3, programs=1)


def _fp8_tile(rows: int, blocks: bool, card: Card) -> ProductTile:
    """Choose the tile of a product of FP8.

    It is that of int8, but sums of a step stand beside those of all, so that a tile has at most half as many; with
    scales of blocks, a thread also holds those of the rows that it adds to: on Blackwell, of each row of its tile.
    """
    if rows <= 64:
        return _few_rows(rows)
    if blocks:
        return ProductTile(128, 128 if card.capability[0] == 9 else 64, warps=8, stages=3, programs=1)
    return ProductTile(128, 128, warps=8, stages=4 if card.has_wide_tiles else 3, programs=1)


def _few_rows(rows: int) -> ProductTile:
    return ProductTile(64, 16 if rows <= 16 else 32 if rows <= 32 else 64, warps=4, stages=5, programs=3)
