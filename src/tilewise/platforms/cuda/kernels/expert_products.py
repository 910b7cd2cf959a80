"""The grouped product: rows sorted by expert times the matrices of their experts, which lie anywhere in memory.

One kernel for all forms of a matrix: which rows a program has and what becomes of its sums is the same for all, and the
sums are made by one of two functions. A program computes BLOCK_M rows of one expert by BLOCK_N outputs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tilewise.platforms.cuda.kernels.grouped_product import FP4, FP8, INT4, INT8
from tilewise.platforms.cuda.kernels.rounding import e4m3_halves

FLOATS, INTEGERS, CODES = (tl.constexpr(form) for form in range(3))
"""Forms of matrices: `Dense`, `Int8`, `Grouped`."""
PLAIN, SILU, CLAMPED = (tl.constexpr(gate) for gate in range(3))
"""Gates over the halves of a first product: none; silu of the first times the second; the clamped one of GPT-OSS."""
MATRIX, SCALES, SHIFTS, BIAS = (tl.constexpr(column) for column in range(4))
COLUMNS: tl.constexpr = tl.constexpr(4)
"""Columns of a table of pointers, and how many there are. A pointer is where an expert's tensor begins; 0 = it has
none."""


@triton.jit
def _rows_of_block(starts, counts, block, experts, EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr):
    """Return the expert of a block, the block's first row, and the end of the expert's rows.

    Each expert's rows are cut into blocks of their own. Every program adds up again from the counts where those begin:
    a scan of some hundred numbers takes less than another launch.
    """
    number = tl.arange(0, EXPERTS)
    blocks = tl.cdiv(tl.load(counts + number, mask=number < experts, other=0), BLOCK_M)
    expert = tl.sum((tl.cumsum(blocks, 0) <= block).to(tl.int32))
    before = tl.sum(tl.where(number < expert, blocks, 0))
    start = tl.load(starts + expert, mask=expert < experts, other=0)
    stop = start + tl.load(counts + expert, mask=expert < experts, other=0)
    return expert, start + (block - before) * BLOCK_M, stop


@triton.jit
def _pointer(table, expert, column, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = tl.load(table + expert * COLUMNS + column).to(tl.pointer_type(TYPE))
    if ALIGNED:
        # What comes out of memory has no known alignment, and without one each number is loaded for itself.
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _sums(
    rows, inside, matrix, output, there, width, WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Multiply rows [BLOCK_M] (pointers) by outputs [BLOCK_N] of a matrix: int8 in int32 if WHOLE, else floats; float32
    is not rounded to TF32.
    """
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.int32 if WHOLE else tl.float32)
    for start in range(0, width, BLOCK_K):
        column = start + tl.arange(0, BLOCK_K)
        x = tl.load(rows[:, None] + column[None, :], mask=inside[:, None] & (column < width)[None, :], other=0)
        own = matrix + output[None, :] * width + column[:, None]
        w = tl.load(own, mask=there[None, :] & (column < width)[:, None], other=0)
        sums = tl.dot(x, w, sums, out_dtype=tl.int32) if WHOLE else tl.dot(x, w, sums, input_precision="ieee")
    return sums


@triton.jit
def _numbers(codes, KIND: tl.constexpr):
    """Return float32 of uint8 codes, one in each.

    The fields of E2M1 and E4M3 are moved to those of float16, whose exponent has a bias that is larger by 14 and 8, for
    which a product makes up; subnormal numbers become its subnormal numbers. That needs no table, and no card that
    knows the format; E4M3's two codes of NaN have to be told apart.
    """
    if KIND == FP4:
        half = ((codes & 8).to(tl.uint16) << 12) | ((codes & 7).to(tl.uint16) << 9)
        return half.to(tl.float16, bitcast=True).to(tl.float32) * 16384.0
    if KIND == FP8:
        return tl.where((codes & 127) == 127, float("nan"), e4m3_halves(codes).to(tl.float32) * 256.0)
    if KIND == INT4:
        return codes.to(tl.float32) - 8
    if KIND == INT8:
        return codes.to(tl.int8, bitcast=True).to(tl.float32)
    return codes.to(tl.float32)


@triton.jit
def _code_sums(
    rows, inside, matrix, scales, shifts, output, there, width, row_bytes, group,
    KIND: tl.constexpr, BITS: tl.constexpr, RUN: tl.constexpr, SHIFTED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Multiply as `_sums` does by a matrix of codes. RUN divides a group and a block, so that RUN neighbouring
    inputs share a scale.

    Outputs are the rows of the product of tiles here, and tokens its columns: tensor cores take the dequantised tile
    from registers if it is the left one, and a few tokens fill a narrow right one. The compiler knows of `row_bytes`,
    as an argument, that rows begin at multiples of 16 bytes; of `width` halved it would not.
    """
    sums = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    per_byte: tl.constexpr = 8 // BITS
    there = there[:, None]
    groups = tl.cdiv(width, group)
    for first in range(0, row_bytes, BLOCK_K // per_byte):
        start = first * per_byte
        place = first + tl.arange(0, BLOCK_K // per_byte)
        mask = there & (place < row_bytes)[None, :]
        codes = tl.load(matrix + output[:, None] * row_bytes + place[None, :], mask=mask, other=0)
        if BITS == 4:  # the earlier input of two is in the low half of a byte
            codes = tl.join(codes & 15, codes >> 4).reshape(BLOCK_N, BLOCK_K)
        numbers = _numbers(codes, KIND).reshape(BLOCK_N, BLOCK_K // RUN, RUN)
        run = (start + tl.arange(0, BLOCK_K // RUN) * RUN) // group
        own = output[:, None] * groups + run[None, :]
        mask = there & (run < groups)[None, :]
        numbers = numbers * tl.load(scales + own, mask=mask, other=0.0)[:, :, None]
        if SHIFTED:
            numbers = numbers + tl.load(shifts + own, mask=mask, other=0.0)[:, :, None]
        column = start + tl.arange(0, BLOCK_K)
        x = tl.load(rows[None, :] + column[:, None], mask=inside[None, :] & (column < width)[:, None], other=0.0)
        w = numbers.reshape(BLOCK_N, BLOCK_K).to(x.dtype)
        sums = tl.dot(w, x, sums, input_precision="ieee")
    return tl.trans(sums)


@triton.jit
def _gated(sums, TYPE: tl.constexpr, GATE: tl.constexpr, BLOCK_M: tl.constexpr, HALF: tl.constexpr):
    """Apply gates: [BLOCK_M, 2 * HALF], each gate beside what it gates -> [BLOCK_M, HALF]. Both are rounded before, as
    they would be stored.

    That of GPT-OSS is (up + 1) * gate * sigmoid(1.702 * gate), gate at most 7, up between -7 and 7
    (`Ops.clamped_swiglu`).
    """
    gate, up = tl.split(sums.to(TYPE).to(tl.float32).reshape(BLOCK_M, HALF, 2))
    if GATE == SILU:
        return (gate / (1 + tl.exp(-gate))).to(TYPE).to(tl.float32) * up
    gate, up = tl.minimum(gate, 7.0), tl.minimum(tl.maximum(up, -7.0), 7.0)
    return (up + 1) * gate / (1 + tl.exp(-1.702 * gate))


@triton.jit
def expert_product(
    x, x_stride, x_scales, order, starts, counts, table, weights, out, experts, outputs, width, row_bytes, group,
    per_token,
    EXPERTS: tl.constexpr, FORM: tl.constexpr, ALIGNED: tl.constexpr, FIRST: tl.constexpr,
    KIND: tl.constexpr, BITS: tl.constexpr, RUN: tl.constexpr, SHIFTED: tl.constexpr, GATE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Multiply a block of an expert's rows by BLOCK_N of its outputs.

    With `FIRST`, rows of x [N, width] are gathered by their choices, and go into out [choices, outputs] in the order of
    experts. Otherwise, rows of x [choices, width] come in that order, and their products, times the weights of the
    choices, go into out in the order of choices.

    Blocks vary fastest, so that those of an expert that run at the same time read the same part of its matrix, which
    comes from memory once. There are as many as there could be; those that have no rows, or belong to an expert that is
    absent, end at once, and what they would have written stays as it was.

    With a `GATE`, outputs of a tile are pairs of one of the first half and one of the second, so that both stand in the
    same registers, and half as many are written.
    """
    expert, first, stop = _rows_of_block(starts, counts, tl.program_id(0), experts, EXPERTS, BLOCK_M)
    if expert >= experts:
        return
    if tl.load(table + expert * COLUMNS + MATRIX) == 0:
        return
    place = first + tl.arange(0, BLOCK_M)
    inside = place < stop
    choice = tl.load(order + place, mask=inside, other=0)
    row = choice // per_token if FIRST else place
    rows = x + row.to(tl.int64) * x_stride
    output = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    there = output < outputs
    if GATE != PLAIN:
        output = output // 2 + output % 2 * (outputs // 2)
    far = output.to(tl.int64)
    if FORM == FLOATS:
        matrix = _pointer(table, expert, MATRIX, x.dtype.element_ty, ALIGNED)
        sums = _sums(rows, inside, matrix, far, there, width, False, BLOCK_M, BLOCK_N, BLOCK_K)
    if FORM == INTEGERS:
        matrix = _pointer(table, expert, MATRIX, tl.int8, ALIGNED)
        whole = _sums(rows, inside, matrix, far, there, width, True, BLOCK_M, BLOCK_N, BLOCK_K)
        scales = tl.load(_pointer(table, expert, SCALES, tl.float32, ALIGNED) + output, mask=there, other=0.0)
        sums = whole.to(tl.float32) * (tl.load(x_scales + row, mask=inside, other=0.0)[:, None] * scales[None, :])
    if FORM == CODES:
        sums = _code_sums(
            rows, inside, _pointer(table, expert, MATRIX, tl.uint8, ALIGNED),
            _pointer(table, expert, SCALES, tl.float32, ALIGNED), _pointer(table, expert, SHIFTS, tl.float32, ALIGNED),
            far, there, width, row_bytes, group, KIND, BITS, RUN, SHIFTED, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    bias = _pointer(table, expert, BIAS, out.dtype.element_ty, ALIGNED)
    biased = tl.load(table + expert * COLUMNS + BIAS) != 0
    sums += tl.load(bias + output, mask=there & biased, other=0.0).to(tl.float32)[None, :]
    target = place
    if FIRST == 0:
        sums = sums * tl.load(weights + choice, mask=inside, other=0.0).to(tl.float32)[:, None]
        target = choice
    if GATE != PLAIN:
        sums = _gated(sums, out.dtype.element_ty, GATE, BLOCK_M, BLOCK_N // 2)
        output = tl.program_id(1) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        outputs = outputs // 2
    own = out + target.to(tl.int64)[:, None] * outputs + output[None, :]
    tl.store(own, sums.to(out.dtype.element_ty), mask=inside[:, None] & (output < outputs)[None, :])
