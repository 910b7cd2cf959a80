"""Products of rows and matrices of 8 bits on tensor cores: whole numbers (W8A8), and float8_e4m3fn with itself.

Both operands go from memory through a pipeline in shared memory to the tensor cores without a change, 128 inputs a
step. Of few rows the time is that of reading the matrix; of many, that of the tensor cores, which multiply numbers of
8 bits twice as fast as of 16.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tilewise.platforms.cuda.card import Card
from tilewise.platforms.cuda.kernels.product_tiles import (
    Epilogue,
    ProductTile,
    Split,
    add_parts,
    store_sums,
    sums_like,
    tile_of,
)

STEP = 128
"""Inputs of a step, and of a block of FP8 that has its own scale."""


@triton.jit(do_not_specialize=["rows", "steps"])
def _byte_product(
    x,
    matrix,
    out,
    block_scales,
    row_block_scales,
    row_scales,
    scales,
    addend,
    bias,
    rows,
    outputs,
    inputs,
    row_stride,
    matrix_stride,
    blocks,
    steps,
    EVEN: tl.constexpr,
    SPLIT: tl.constexpr,
    GELU: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Make one tile of the result or, with SPLIT, one part of its sums: see `product_tiles`."""
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
            # Hopper's tensor cores add products of FP8 with about 14 bits (DeepSeek-V3, arXiv 2412.19437, 3.3.2): the
            # sums of a step are added to those of all in float32.
            total = tl.dot(w, tl.trans(a), total, max_num_imprecise_acc=STEP)
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
    return _product(
        x,
        matrix,
        dtype,
        epilogue,
        card,
        _fp8_tile(len(x), block_scales is not None, card),
        block_scales,
        row_block_scales,
    )


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
        *(x, matrix, sums, block_scales, row_block_scales, *epilogue.tensors),
        *(rows, outputs, inputs, x.stride(0), matrix.stride(0)),
        *(triton.cdiv(inputs, STEP), split.steps),
        EVEN=inputs % STEP == 0,
        SPLIT=split.parts > 1,
        GELU=epilogue.gelu,
        OUTPUTS=tile.outputs,
        ROWS=tile.rows,
        STEP=STEP,
        num_warps=tile.warps,
        num_stages=tile.stages,
        enable_fp_fusion=False,
    )
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
    return ProductTile(128, 128, warps=8, stages=3 if card.capability[0] == 8 else 4, programs=1)


def _fp8_tile(rows: int, blocks: bool, card: Card) -> ProductTile:
    """Choose the tile of a product of FP8.

    It is that of int8, but sums of a step stand beside those of all, so that a tile has at most half as many; with
    scales of blocks, a thread also holds those of the rows that it adds to: on Blackwell, of each row of its tile.
    """
    if rows <= 64:
        return _few_rows(rows)
    if blocks:
        return ProductTile(128, 128 if card.capability[0] == 9 else 64, warps=8, stages=3, programs=1)
    return ProductTile(128, 128, warps=8, stages=4, programs=1)


def _few_rows(rows: int) -> ProductTile:
    return ProductTile(64, 16 if rows <= 16 else 32 if rows <= 32 else 64, warps=4, stages=5, programs=3)
