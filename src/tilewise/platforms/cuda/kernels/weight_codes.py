"""Codes of 4 and 8 bits: how they are kept for products, and how they become numbers in registers.

Words of 32 bits hold them. Tensor cores take numbers of 16 bits in registers, two neighbouring inputs in each; so a
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

from tilewise.platforms.forms import Codes, Grouped

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
