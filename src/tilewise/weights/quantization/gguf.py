"""Blocks of GGUF files: 32 numbers with a scale of their own, or 256 with scales of scales (k-quants).

Sources: ggml-org/ggml `src/ggml-common.h` for the blocks, `src/ggml-quants.c` (`dequantize_row_*`) for their meaning.
Products of scales are made in float32, in the order in which ggml makes them, so numbers are the same bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tilewise.platforms.forms import Codes, Form, Grouped, packed_nibbles
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.gguf import indexed_tensors
from tilewise.weights.gguf.container import TYPES_BY_NAME
from tilewise.weights.quantization import Method
from tilewise.weights.quantization.stored import Layouts, StoredLayout, StoredModule, bit_fields, powers_of_two

_NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""Numbers that the codes of IQ4 stand for."""


@dataclass(frozen=True, slots=True)
class _Unpacked:
    """A matrix whose blocks [rows, blocks, bytes] were taken apart."""

    kind: Codes
    codes: Tensor
    """uint8 [rows, blocks, ...], one a byte, in the order of the inputs."""
    scales: Tensor
    """float32 [rows, blocks] or [rows, blocks, groups]"""
    shifts: Tensor | None = None
    group: int = 32

    def form(self) -> Grouped:
        codes = self.codes.flatten(1)
        if self.kind.bits == 4:
            codes = packed_nibbles(codes)
        shifts = None if self.shifts is None else self.shifts.flatten(1)
        return Grouped(self.kind, codes, self.scales.flatten(1), shifts, self.group)


@dataclass(frozen=True)
class BlockLayout(StoredLayout):
    """A layer whose matrix [out, in] has rows of blocks of one type."""

    type: str

    def read(self, stored: StoredModule, outputs: int | None, inputs: int) -> Form:
        kind = TYPES_BY_NAME[self.type]
        blocks = inputs // kind.numbers
        rows = stored.tensor(".weight", (outputs, blocks * kind.bytes), ("U8",))
        form = _UNPACK[self.type](rows.view(len(rows), blocks, kind.bytes)).form()
        for numbers in (form.scales, form.shifts):
            if numbers is not None and not numbers.is_meta and not numbers.isfinite().all():
                row = int((~numbers.isfinite()).nonzero()[0, 0])
                raise stored.wrong(".weight", f"has a scale in row {row} that is not finite", "numbers")
        return form

    def __str__(self) -> str:
        return f"{self.type} of GGUF"


def _half(blocks: Tensor, at: int) -> Tensor:
    """Return the float16 at byte `at` of each block, as float32."""
    halves: Tensor = blocks[..., at : at + 2].contiguous().view(torch.float16)
    return halves[..., 0].float()


def _q4_0(blocks: Tensor) -> _Unpacked:
    return _Unpacked(Codes.INT4, bit_fields(blocks[..., 2:], 4), _half(blocks, 0))


def _q4_1(blocks: Tensor) -> _Unpacked:
    return _Unpacked(Codes.UINT4, bit_fields(blocks[..., 4:], 4), _half(blocks, 0), _half(blocks, 2))


def _fifth_bits(packed: Tensor) -> Tensor:
    """Split [..., 4] bytes into bits [..., 2, 16]: bit n is the highest bit of number n of a block."""
    bits = bit_fields(packed, 1).transpose(-2, -1)  # [..., 4, 8]
    return bits.reshape(*bits.shape[:-2], 2, 16)


def _q5_0(blocks: Tensor) -> _Unpacked:
    codes = bit_fields(blocks[..., 6:], 4) | (_fifth_bits(blocks[..., 2:6]) << 4)
    return _Unpacked(Codes.INT8, codes - 16, _half(blocks, 0))


def _q5_1(blocks: Tensor) -> _Unpacked:
    codes = bit_fields(blocks[..., 8:], 4) | (_fifth_bits(blocks[..., 4:8]) << 4)
    return _Unpacked(Codes.UINT8, codes, _half(blocks, 0), _half(blocks, 2))


def _q8_0(blocks: Tensor) -> _Unpacked:
    return _Unpacked(Codes.INT8, blocks[..., 2:], _half(blocks, 0))


def _q2_k(blocks: Tensor) -> _Unpacked:
    """Take Q2_K apart: 16 scales and minima of 4 bits, and two halves of 32 bytes with four numbers in each byte."""
    scales, minima = blocks[..., :16] & 15, blocks[..., :16] >> 4
    codes = bit_fields(blocks[..., 16:80].unflatten(-1, (2, 32)), 2)
    return _with_minima(Codes.UINT4, codes, blocks, 80, scales, minima, 16)


def _q3_k(blocks: Tensor) -> _Unpacked:
    """Take Q3_K apart: 16 scales of 6 bits with 32 added, and numbers of 2 bits, from which 4 is taken off unless a
    third bit is set."""
    low = bit_fields(blocks[..., 96:104], 4).flatten(-2)
    scales = low | (bit_fields(blocks[..., 104:108], 2).flatten(-2) << 4)
    codes = bit_fields(blocks[..., 32:96].unflatten(-1, (2, 32)), 2)
    third = bit_fields(blocks[..., :32], 1).unflatten(-2, (2, 4))
    scale = _half(blocks, 108).unsqueeze(-1) * (scales.float() - 32)
    return _Unpacked(Codes.INT4, codes + 4 * third + 4, scale, None, 16)  # -4 .. 3, kept with 8 added


def _q4_k(blocks: Tensor) -> _Unpacked:
    codes = bit_fields(blocks[..., 16:].unflatten(-1, (4, 32)), 4)
    return _with_minima(Codes.UINT4, codes, blocks, 0, *_six_bits(blocks[..., 4:16]), 32)


def _q5_k(blocks: Tensor) -> _Unpacked:
    high = bit_fields(blocks[..., 16:48], 1).unflatten(-2, (4, 2))
    codes = bit_fields(blocks[..., 48:].unflatten(-1, (4, 32)), 4) | (high << 4)
    return _with_minima(Codes.UINT8, codes, blocks, 0, *_six_bits(blocks[..., 4:16]), 32)


def _six_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Unpack 12 bytes to 8 scales and 8 minima of 6 bits; the last four of each are stored as 4 and 2 bits."""
    first, second, third = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = torch.cat((first & 63, (third & 15) | (first >> 6 << 4)), dim=-1)
    minima = torch.cat((second & 63, (third >> 4) | (second >> 6 << 4)), dim=-1)
    return scales, minima


def _with_minima(
    kind: Codes, codes: Tensor, blocks: Tensor, at: int, scales: Tensor, minima: Tensor, group: int
) -> _Unpacked:
    """Return blocks with minima; a block's scale stands at byte `at`, and that of its minima behind it."""
    scale = _half(blocks, at).unsqueeze(-1) * scales.float()
    return _Unpacked(kind, codes, scale, -(_half(blocks, at + 2).unsqueeze(-1) * minima.float()), group)


def _q6_k(blocks: Tensor) -> _Unpacked:
    low = bit_fields(blocks[..., :128].unflatten(-1, (2, 64)), 4).flatten(-2)
    high = bit_fields(blocks[..., 128:192].unflatten(-1, (2, 32)), 2).flatten(-2)
    scales = blocks[..., 192:208].contiguous().view(torch.int8).float()
    return _Unpacked(Codes.INT8, (low | (high << 4)) - 32, _half(blocks, 208).unsqueeze(-1) * scales, None, 16)


def _iq4_nl(blocks: Tensor) -> _Unpacked:
    return _Unpacked(Codes.INT8, _looked_up(bit_fields(blocks[..., 2:], 4)), _half(blocks, 0))


def _iq4_xs(blocks: Tensor) -> _Unpacked:
    """Take IQ4_XS apart: 8 scales of 6 bits with 32 added, whose low four bits are in 4 bytes and high two in 2."""
    low = bit_fields(blocks[..., 4:8], 4).transpose(-2, -1).flatten(-2)
    high = bit_fields(blocks[..., 2:4], 2).transpose(-2, -1).flatten(-2)
    scale = _half(blocks, 0).unsqueeze(-1) * ((low | (high << 4)).float() - 32)
    return _Unpacked(Codes.INT8, _looked_up(bit_fields(blocks[..., 8:].unflatten(-1, (8, 16)), 4)), scale)


def _looked_up(codes: Tensor) -> Tensor:
    table = torch.tensor(_NONLINEAR, dtype=torch.int8, device=codes.device).view(torch.uint8)
    return table[codes.int()]


def _mxfp4(blocks: Tensor) -> _Unpacked:
    return _Unpacked(Codes.FP4, bit_fields(blocks[..., 1:], 4), powers_of_two(blocks[..., 0]))


_UNPACK: dict[str, Callable[[Tensor], _Unpacked]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4,
}


def layouts(folder: CheckpointFolder) -> Layouts:
    """Return each matrix's own layout: files called Q4_K_M keep half of some kinds of matrices in Q6_K."""
    quantised = {
        name.removesuffix(".weight"): BlockLayout(tensor.type)
        for name, tensor in indexed_tensors(folder.path).items()
        if tensor.quantised
    }
    return quantised.get


METHOD = Method(("gguf",), layouts)
