"""Products of rows of floats with codes of 4 and 8 bits in groups (W4A16, MXFP4, W8A16), decoded in registers.

One kernel does two kinds of work. Few rows (decode) wait for memory to bring the codes: every instruction for a code
counts. The tensor cores are given the codes' own numbers, which 16 bits hold exactly, and the sums of a group are
scaled instead of its numbers: with 16 rows that is a multiplication for 8 codes, not one for each. Whole numbers of 4
bits stay 16 too large on the way (`integers_above_16`); what that and shifts add to a sum is a multiple of
the sum of the group's x, which is taken from a second product, with ones: tensor cores have nothing else to do.

Many rows (prefill) wait for the tensor cores. There each number is scaled, shifted and rounded to the dtype of x, once
for all rows of a tile, and sums run on through all groups without a second set of accumulators. These are the numbers
of `weights.GroupedWeight`; few rows' are not rounded, which is nearer to what codes and scales say.

Words of 32 bits hold codes. Tensor cores take numbers of 16 bits in registers, two neighbouring inputs in each; so a
word's lower half has codes of even inputs and its upper half those of the odd ones beside them. Then one shift and one
logical instruction make two numbers at once, in the place where the tensor cores want them. Marlin (arXiv 2408.11743)
orders codes to this end too. A word has 4 such pairs of 4 bits, or 2 of 8: its parts. They are `run` inputs apart, so
that a part of neighbouring words is `run` neighbouring inputs, which share a scale; run / 2 words are a block. So word
w of a block has, from bit part * bits on, the code of input part * run + 2 * w, and 16 bits above it that of the next.

Conversions of whole numbers into floats run at an eighth of the rate of arithmetic on an A100, which is slower than
memory brings codes along. So a code is put into the mantissa of a float whose exponent is fixed: these are the bits of
16 + code, or of 256 + code. Codes of floats are moved to the top of a float32, where their exponent is too small by a
constant, which a product with a power of two makes good, of subnormal numbers as well.
"""

from __future__ import annotations

from math import gcd

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from tilewise.platforms.cuda import Card
from tilewise.platforms.cuda.kernels.products import (
    Epilogue,
    ProductTile,
    Split,
    add_parts,
    store_sums,
    sums_like,
    tile_of,
)
from tilewise.platforms.forms import Codes, Grouped, packed_nibbles

_LEAST_RUN = 16
"""Inputs that one instruction of the tensor cores takes."""
_OUTPUTS = 512
"""Outputs that are packed at a time."""

NUMBER = {kind: number for number, kind in enumerate(Codes)}
UINT4, INT4, FP4, UINT8, INT8, FP8 = map(tl.constexpr, range(len(NUMBER)))
"""Kernels know kinds by their places in `forms.Codes`: whole numbers of 4 bits first, those of 4 bits before 8."""


def parts_of(kind: Codes) -> int:
    """Return the number of pairs of codes in a word."""
    return 16 // kind.bits


def run_of(kind: Codes, group: int, inputs: int) -> int | None:
    """Return the inputs of a part of a block: a power of two that divides groups; None if that would be too small."""
    longest = 128 // parts_of(kind)
    run = longest if group >= inputs else gcd(longest, group)
    return run if run >= _LEAST_RUN else None


def words_of(form: Grouped, run: int) -> Tensor:
    """Pack codes into int32 [outputs, words]; those of inputs beyond the last, up to a whole block, are zeros."""
    parts, (outputs, inputs) = parts_of(form.kind), form.shape
    missing = -inputs % (parts * run)
    words = form.codes.new_empty((outputs, (inputs + missing) // (2 * parts)), dtype=torch.int32)
    if words.is_meta:
        return words
    places = torch.arange(parts, dtype=torch.int32, device=words.device) * form.kind.bits
    for first in range(0, outputs, _OUTPUTS):
        which = slice(first, first + _OUTPUTS)
        codes = F.pad(form.rows(which).unpacked(), (0, missing))
        pairs = codes.view(len(codes), -1, parts, run // 2, 2).int() << places[:, None, None]
        lower, upper = pairs.sum(2, dtype=torch.int32).unbind(-1)
        words[which] = (lower | (upper << 16)).flatten(1)
    return words


def codes_of(words: Tensor, kind: Codes, run: int, inputs: int) -> Tensor:
    """Return the codes that `words_of` has packed, as `Grouped` keeps them."""
    places = torch.arange(parts_of(kind), dtype=torch.int32, device=words.device) * kind.bits
    blocks = words.view(len(words), -1, 1, run // 2)
    pairs = [blocks >> (half + places)[:, None] & (1 << kind.bits) - 1 for half in (0, 16)]
    codes = torch.stack(pairs, dim=-1).flatten(1)[:, :inputs].to(torch.uint8)
    return packed_nibbles(codes) if kind.bits == 4 else codes


@triton.jit
def integers_above_16(words, PART: tl.constexpr, DTYPE: tl.constexpr):
    """Return 16 + the codes of 4 bits of a part, exactly, in float16 or bfloat16: [.., n] words -> [.., 2 * n]."""
    # 16 is 0x4180 in bfloat16, whose mantissa has 7 bits, and 0x4C00 in float16, where it has 10: a code counts ones
    # from bit 3 or 6 on. Both halves of a word are made at once.
    if tl.bfloat16 == DTYPE:
        moved = words << 3 if PART == 0 else words >> (4 * PART - 3)
        bits = moved & 0x00780078 | 0x41804180
    else:
        moved = words << (6 - 4 * PART) if PART < 2 else words >> (4 * PART - 6)
        bits = moved & 0x03C003C0 | 0x4C004C00
    lower = bits.to(tl.uint16).to(DTYPE, bitcast=True)
    upper = (bits >> 16).to(tl.uint16).to(DTYPE, bitcast=True)
    return tl.join(lower, upper).reshape(words.shape[0], 2 * words.shape[1])


@triton.jit
def numbers_of(words, PART: tl.constexpr, KIND: tl.constexpr):
    """Return the float32 numbers that the codes of a part stand for: [.., n] words -> [.., 2 * n]."""
    BITS: tl.constexpr = 8 if KIND >= UINT8 else 4
    lower, upper = _number(words, PART * BITS, KIND), _number(words, 16 + PART * BITS, KIND)
    return tl.join(lower, upper).reshape(words.shape[0], 2 * words.shape[1])


@triton.jit
def beside(left, right):
    """Put [.., n] beside [.., n] -> [.., 2 * n]; no number changes its thread where the compiler may choose those."""
    return tl.join(left, right).permute(0, 2, 1).reshape(left.shape[0], 2 * left.shape[1])


@triton.jit
def _number(words, PLACE: tl.constexpr, KIND: tl.constexpr):
    """Return the number of the code that begins at bit PLACE of the word."""
    # The code of a float is moved up until its sign is on top, and then down, which leaves the sign there, until its
    # exponent and mantissa are where float32 has them; the mask clears the copies of the sign between. A whole number
    # goes into the mantissa of 16 or 256, where its lowest bit counts 1.
    if KIND == FP4:  # s ee m, whose exponent has 1 added; that of float32 has 127
        bits = ((words << (28 - PLACE)).to(tl.int32, bitcast=True) >> 6) & -0x7E400000
        number = bits.to(tl.float32, bitcast=True) * 8.507059173023462e37  # 2 ** 126
    elif KIND == FP8:  # s eeee mmm, whose exponent has 7 added
        bits = ((words << (24 - PLACE)).to(tl.int32, bitcast=True) >> 4) & -0x78100000
        number = bits.to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2 ** 120
    elif KIND <= INT4:
        moved = words << (19 - PLACE) if PLACE <= 19 else words >> (PLACE - 19)
        raised = (moved & 0x00780000 | 0x41800000).to(tl.float32, bitcast=True)
        number = raised - (24.0 if KIND == INT4 else 16.0)
    else:
        moved = words << (15 - PLACE) if PLACE <= 15 else words >> (PLACE - 15)
        if KIND == INT8:  # in two's complement: with its highest bit turned over it is 128 more
            number = (moved & 0x007F8000 ^ 0x43C00000).to(tl.float32, bitcast=True) - 384.0
        else:
            number = (moved & 0x007F8000 | 0x43800000).to(tl.float32, bitcast=True) - 256.0
    return number


@triton.jit
def _shift(stored, scale):
    """Return the shift of a group, which may be kept as its zero point."""
    return -stored.to(tl.float32) * scale if stored.dtype == tl.uint8 else stored.to(tl.float32)


@triton.jit
def _weights(
    block, group_scales, group_shifts, place, group, inputs, outputs, near_output, FIRST: tl.constexpr, PARTS:
    tl.constexpr, RUN: tl.constexpr, KIND: tl.constexpr, DTYPE: tl.constexpr, RAISED: tl.constexpr, SCALED:
    tl.constexpr,
):  # fmt: skip
    """Return PARTS parts of a block, from part FIRST on, as they are multiplied: [outputs, PARTS * RUN] in DTYPE.

    Their first input is `place`. With RAISED, numbers are 16 more than the codes; with SCALED, scaled and shifted.
    Halves are made by themselves and put side by side, as Triton joins two tensors at a time.
    """
    if PARTS == 1:
        if RAISED:
            w = integers_above_16(block, FIRST, DTYPE)
        else:
            exact = numbers_of(block, FIRST, KIND)
            if SCALED:
                which = (tl.minimum(place, inputs - 1) // group) * outputs + near_output
                scale = tl.load(group_scales + which).to(tl.float32)
                exact *= scale[:, None]
                if group_shifts is not None:
                    exact += _shift(tl.load(group_shifts + which), scale)[:, None]
            w = exact.to(DTYPE)
    else:
        HALF: tl.constexpr = PARTS // 2
        w = beside(
            _weights(
                *(block, group_scales, group_shifts, place, group, inputs, outputs, near_output),
                *(FIRST, HALF, RUN, KIND, DTYPE, RAISED, SCALED),
            ),
            _weights(
                *(block, group_scales, group_shifts, place + HALF * RUN, group, inputs, outputs, near_output),
                *(FIRST + HALF, HALF, RUN, KIND, DTYPE, RAISED, SCALED),
            ),
        )
    return w


@triton.jit(do_not_specialize=["rows", "steps"])
def _grouped_product(
    x, words, group_scales, group_shifts, out, row_scales, scales, addend, bias, rows, outputs, inputs, row_stride,
    words_stride, group, steps, KIND: tl.constexpr, FEW: tl.constexpr, EVEN: tl.constexpr, SPLIT: tl.constexpr,
    GELU: tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr, RUN: tl.constexpr, PARTS: tl.constexpr, AT_ONCE:
    tl.constexpr,
):  # fmt: skip
    """Make one tile of the result or, with SPLIT, one part of its sums: see `products`.

    With FEW, sums are scaled, otherwise weights are; AT_ONCE parts of a block go into one product.
    """
    DTYPE: tl.constexpr = x.dtype.element_ty
    WIDTH: tl.constexpr = AT_ONCE * RUN
    # With few rows, sums are scaled, and whole numbers of 4 bits are OFFSET too large where they are multiplied.
    SCALED_SUMS: tl.constexpr = FEW and group_scales is not None
    SCALED_WEIGHTS: tl.constexpr = not FEW and group_scales is not None
    RAISED: tl.constexpr = FEW and KIND <= INT4 and tl.float32 != DTYPE
    OFFSET: tl.constexpr = 24.0 if KIND == INT4 else 16.0
    first_output, first_row = tile_of(rows, outputs, OUTPUTS, ROWS)
    output = first_output + tl.arange(0, OUTPUTS)
    row = first_row + tl.arange(0, ROWS)
    place = tl.arange(0, WIDTH)
    # Beyond an edge stands the last output or row once more, which costs nothing; only stores know of edges.
    near_output, near_row = tl.minimum(output, outputs - 1), tl.minimum(row, rows - 1)
    codes = words + near_output[:, None].to(tl.int64) * words_stride + tl.arange(0, RUN // 2)[None, :]
    numbers = x + near_row[:, None].to(tl.int64) * row_stride + place[None, :]
    # Ones, made as weights are, so that the compiler keeps both in the same order in registers and reads x once.
    half = tl.full((OUTPUTS, WIDTH // 2), 1.0, dtype=tl.float32).to(DTYPE)
    ones = tl.join(half, half).reshape(OUTPUTS, WIDTH)
    total = tl.zeros((OUTPUTS, ROWS), dtype=tl.float32)
    start = tl.program_id(1) * steps
    for step in range(start, min(start + steps, tl.cdiv(inputs, RUN * PARTS))):
        block = tl.load(codes + step * (RUN // 2)).to(tl.uint32, bitcast=True)
        for part in tl.static_range(0, PARTS, AT_ONCE):
            first = (step * PARTS + part) * RUN
            if EVEN:
                a = tl.load(numbers + first)
            else:
                a = tl.load(numbers + first, mask=(first + place < inputs)[None, :], other=0.0)
            a = tl.trans(a)
            w = _weights(
                *(block, group_scales, group_shifts, first, group, inputs, outputs, near_output),
                *(part, AT_ONCE, RUN, KIND, DTYPE, RAISED, SCALED_WEIGHTS),
            )
            if not SCALED_SUMS:
                total = tl.dot(w, a, total, input_precision="ieee")
            else:
                which = (tl.minimum(first, inputs - 1) // group) * outputs + near_output
                scale = tl.load(group_scales + which).to(tl.float32)
                total += tl.dot(w, a, input_precision="ieee") * scale[:, None]
                # (number + OFFSET) * scale was multiplied by x where number * scale + shift is meant. The difference
                # is one number for the whole group, so it is made up by that number times the group's sum of x.
                if RAISED or group_shifts is not None:
                    added = -OFFSET * scale if RAISED else tl.zeros_like(scale)
                    if group_shifts is not None:
                        added += _shift(tl.load(group_shifts + which), scale)
                    total += tl.dot(ones, a, input_precision="ieee") * added[:, None]
    store_sums(total, output, row, rows, outputs, out, row_scales, scales, addend, bias, SPLIT, GELU)


def grouped_product(
    x: Tensor,
    kind: Codes,
    words: Tensor,
    scales: Tensor,
    shifts: Tensor | None,
    group: int,
    bias: Tensor | None,
    gelu: bool,
    card: Card,
) -> Tensor:
    """Multiply x [rows, inputs] by the matrix of `words_of` [outputs, words] -> [rows, outputs], as x is.

    `scales` are [groups, outputs] in any float dtype; `shifts` alike, or uint8 zero points, which stand for -zero *
    scale; groups are such as `run_of` knows. How inputs are split, whether sums or numbers are scaled, and
    so a result's last places depend on how many rows there are.
    """
    (rows, inputs), outputs = x.shape, len(words)
    out = x.new_empty(rows, outputs)
    if not out.numel():
        return out
    run, parts = run_of(kind, group, inputs), parts_of(kind)
    assert run is not None
    tile = _tile(rows, x.dtype, card)
    few = tile.rows <= 32
    # One scale for all inputs of an output waits for the finished sum, unless codes are 16 too large until then.
    one_scale = len(scales) == 1 and shifts is None and not (few and kind in (Codes.UINT4, Codes.INT4))
    epilogue = Epilogue(scales=scales if one_scale else None, bias=bias, gelu=gelu)
    tiles = triton.cdiv(outputs, tile.outputs) * triton.cdiv(rows, tile.rows)
    split = Split.of(triton.cdiv(inputs, run * parts), tiles, tile, card)
    sums = sums_like(out, split.parts, torch.float32)
    _grouped_product[tiles, split.parts](
        x, words, None if one_scale else scales, shifts, sums, *epilogue.tensors,
        rows, outputs, inputs, x.stride(0), words.stride(0), group, split.steps,
        KIND=NUMBER[kind], FEW=few, EVEN=inputs % (run * parts) == 0, SPLIT=split.parts > 1, GELU=gelu,
        OUTPUTS=tile.outputs, ROWS=tile.rows, RUN=run, PARTS=parts,
        AT_ONCE=parts if group >= inputs or not few else gcd(group, run * parts) // run,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    if split.parts > 1:
        add_parts(sums, out, epilogue)
    return out


def _tile(rows: int, dtype: torch.dtype, card: Card) -> ProductTile:
    """Choose the tile of a product.

    Few rows take 64 outputs of two warps, with some 4 KB of codes a step, and several such programs a processor. Two
    warps are too few for the instructions of Hopper and Blackwell, which would wait for each other at every group; the
    older ones, which all cards have, take fewer registers and no waiting. Many rows take 128 outputs, whose numbers are
    decoded once for as many rows as accumulators leave registers for. float32 is multiplied without tensor cores,
    whose TF32 would round it.
    """
    if dtype == torch.float32:
        return ProductTile(32, 16, warps=4, stages=2)
    if rows <= 32:
        return ProductTile(64, 16 if rows <= 16 else 32, warps=2, stages=4, programs=4)
    if rows <= 64:
        return ProductTile(128, 64, warps=8, stages=4, programs=1)
    return ProductTile(128, 256 if rows > 512 and card.capability[0] == 9 else 128, warps=8, stages=3, programs=1)
