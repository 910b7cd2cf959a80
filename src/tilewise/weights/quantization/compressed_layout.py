"""Layers of compressed-tensors: codes as bytes or packed into words of 32 bits, with scales, zero points and an order.

Source: vllm-project/compressed-tensors 0.20.1, `compressors/pack_quantized` (order of bits, zero points along the
outputs), `compressors/naive_quantized`, `quantization/lifecycle/initialize.py` (shapes); 0.12 for `weight_g_idx`.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from tilewise.platforms.forms import Codes, Dense, Form, Grouped, Int8, StaticRows
from tilewise.weights.quantization.stored import (
    FLOATS,
    ScaleBlock,
    StoredLayout,
    StoredModule,
    grouped,
    order_by_group,
    shifts_of,
    unpacked,
    with_middle,
)


class RowRounding(Enum):
    """The way of rounding the rows that a matrix is multiplied with."""

    NONE = "rows in floats"
    BY_ROW = "rows rounded one by one"
    STATIC = "rows rounded by a fixed scale"


@dataclass(frozen=True, slots=True)
class WeightScheme:
    """The settings of a scheme for the weights."""

    bits: int
    floating: bool
    block: ScaleBlock
    symmetric: bool = True
    reordered: bool = False
    """True if inputs are assigned to groups by `weight_g_idx`."""

    def __str__(self) -> str:
        return f"{'fp' if self.floating else 'int'}{self.bits} {self.block}" + (
            "" if self.symmetric else " with zero points"
        )


@dataclass(frozen=True)
class ByteLayout(StoredLayout):
    """A layer of int8 or FP8. The scales of rows of FP8 are read and checked, but rows stay floats: the weights are
    multiplied as exactly as they are stored."""

    weights: WeightScheme
    rounding: RowRounding
    names: Set[str]
    """Names of all tensors of the files; empty before they are known."""
    static_rows: bool = False
    """True if the files have a scale of rows, whether it is used or not."""

    def __str__(self) -> str:
        return f"{self.weights}, {self.rounding.value}"

    def read(self, stored: StoredModule, outputs: int | None, inputs: int) -> Form:
        codes = stored.tensor(".weight", (outputs, inputs), ("F8_E4M3" if self.weights.floating else "I8", *FLOATS))
        if codes.dtype not in (torch.int8, torch.float8_e4m3fn):  # left in floats without being named
            return Dense(codes)
        if not self.weights.floating:
            _check_range(stored, codes, self.weights.bits)
        return self._form(stored, codes, None)

    def _form(self, stored: StoredModule, codes: Tensor, order: Tensor | None) -> Form:
        """Return the form of codes int8 or FP8 [outputs, inputs], with the scales and zero points beside them."""
        outputs, inputs = codes.shape
        scales, zeros = self._scales(stored, outputs, inputs)
        static = self._static(stored)
        group = self.weights.block.inputs or inputs
        if self.weights.floating:
            return Grouped(Codes.FP8, codes.view(torch.uint8), scales, None, group)
        if self.rounding is not RowRounding.NONE and zeros is None:
            return _int8(codes, scales[:, 0].contiguous(), static)
        return grouped(codes, scales, zeros, group, self.weights.bits, order)

    def _scales(self, stored: StoredModule, outputs: int, inputs: int) -> tuple[Tensor, Tensor | None]:
        """Return scales float32 and zero points uint8 with 2 ** (bits - 1) added, both [outputs, blocks side by side].

        Zero points are None where all codes are symmetric.
        """
        block = self.weights.block
        usual, *others = block.shapes(outputs, inputs)
        scales = block.of_each_output(stored.scales(".weight_scale", usual, FLOATS, *others), outputs, inputs)
        if self.weights.symmetric and not self._has(stored, ".weight_zero_point", expected=False):
            return scales, None
        zeros = self._zeros(stored, usual, *others)
        if self.weights.symmetric and not zeros.is_meta:
            if (zeros != 2 ** (self.weights.bits - 1)).any():
                raise stored.wrong(
                    ".weight_zero_point", "has numbers other than 0", "zeros, as its scheme is symmetric"
                )
            return scales, None
        return scales, block.of_each_output(zeros, outputs, inputs)

    def _zeros(self, stored: StoredModule, usual: Sequence[int], *others: Sequence[int]) -> Tensor:
        return with_middle(stored.tensor(".weight_zero_point", usual, ("I8",), *others), self.weights.bits)

    def _static(self, stored: StoredModule) -> StaticRows | None:
        if not self.static_rows:
            return None
        scale = stored.tensor(".input_scale", (1,), FLOATS, ())
        stored.check_scales(".input_scale", scale, of_rows=True)
        offset = None
        if self._has(stored, ".input_zero_point", expected=False):
            offset = stored.tensor(".input_zero_point", (1,), ("I8", "I32"), ())
            if not offset.is_meta and not -128 <= int(offset.item()) <= 127:
                raise stored.wrong(".input_zero_point", f"holds {int(offset.item())}", "a number from -128 to 127")
        if scale.is_meta:
            return StaticRows(1.0, 0)
        return StaticRows(scale.item(), 0 if offset is None else int(offset.item()))

    def _has(self, stored: StoredModule, end: str, expected: bool) -> bool:
        """True if the files have the tensor; before their names are known, `expected`."""
        return stored.name + end in self.names if self.names else expected


@dataclass(frozen=True)
class PackedLayout(ByteLayout):
    """A layer of whole numbers of 1 to 8 bits, packed along the inputs into words of 32 bits."""

    suffix = ".weight_packed"

    def read(self, stored: StoredModule, outputs: int | None, inputs: int) -> Form:
        bits = self.weights.bits
        words = stored.tensor(".weight_packed", (outputs, -(-inputs * bits // 32)), ("I32",))
        if self._has(stored, ".weight_shape", expected=True):
            _check_shape(stored, len(words), inputs)
        order, group = self._order(stored, inputs), self.weights.block.inputs or inputs
        if bits != 4 or group % 2 or inputs % 2 or order is not None:
            codes = unpacked(words, bits, inputs) - 2 ** (bits - 1)
            return self._form(stored, codes.view(torch.int8), order)
        # The bytes of the file are those of the form: the earlier input is in the low half, and 8 is added.
        scales, zeros = self._scales(stored, len(words), inputs)
        self._static(stored)
        kind = Codes.INT4 if zeros is None else Codes.UINT4
        return Grouped(kind, words.view(torch.uint8)[:, : inputs // 2], scales, shifts_of(zeros, scales), group)

    def _zeros(self, stored: StoredModule, usual: Sequence[int], *others: Sequence[int]) -> Tensor:
        """Read zero points packed along the outputs; in old files, or if the matrix has one scale, they are int8."""
        bits = self.weights.bits
        if len(usual) == 1:
            return super()._zeros(stored, usual, *others)
        words = (-(-usual[0] * bits // 32), usual[1])
        zeros = stored.tensor(".weight_zero_point", words, ("I32", "I8"), usual, *others)
        return unpacked(zeros.T, bits, usual[0]).T if zeros.dtype == torch.int32 else with_middle(zeros, bits)

    def _order(self, stored: StoredModule, inputs: int) -> Tensor | None:
        """Return the inputs in the order that puts those of each group side by side; None where they already are."""
        if not self._has(stored, ".weight_g_idx", expected=self.weights.reordered):
            return None
        groups, group = stored.tensor(".weight_g_idx", (inputs,), ("I32", "I64")), self.weights.block.inputs or inputs
        if groups.is_meta:
            return torch.empty(inputs, dtype=torch.int64, device="meta")
        if bool((groups == -1).all()):
            return None
        try:
            return order_by_group(groups, group)
        except ValueError as counts:
            expected = f"{group} inputs to each of {-(-inputs // group)} groups, as its scheme says"
            raise stored.wrong(".weight_g_idx", f"assigns {counts} inputs to its groups", expected) from None


def _check_shape(stored: StoredModule, outputs: int, inputs: int) -> None:
    shape = stored.tensor(".weight_shape", (2,), ("I64", "I32"))
    if not shape.is_meta and shape.tolist() != [outputs, inputs]:
        raise stored.wrong(".weight_shape", f"holds {shape.tolist()}", f"{[outputs, inputs]}")


def _check_range(stored: StoredModule, codes: Tensor, bits: int) -> None:
    most = 2 ** (bits - 1)
    if bits < 8 and not codes.is_meta and ((codes < -most) | (codes >= most)).any():
        found = f"has numbers from {int(codes.min())} to {int(codes.max())}"
        raise stored.wrong(".weight", found, f"none outside [{-most}, {most - 1}], as num_bits is {bits}")


def _int8(matrix: Tensor, scales: Tensor, static: StaticRows | None) -> Int8:
    if static is None:
        return Int8(matrix, scales)
    # Rows are rounded to q = x / scale + offset, so that a sum of matrix * q is too large by offset times the sum of
    # the output's weights, whatever x is.
    addend = matrix.sum(1, dtype=torch.int32) * -static.offset
    return Int8(matrix, scales * static.scale, static, addend)
