"""Forms in which checkpoints keep a matrix that only multiplies, as plain tensors.

A reader of a checkpoint format turns what its files hold into one of three forms, and a platform's `Store` keeps a form
as it is, repacks it, or dequantises it for each product. All forms are matrices [out, in]; a bias is not part of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache
from math import gcd
from typing import Any

import torch
from torch import Tensor

Rows = slice | Tensor
"""Outputs of a matrix: a range, or int64 indices in the order that is wanted."""


class Codes(Enum):
    """The kinds of codes of a `Grouped` matrix, by what they stand for before their group's scale."""

    UINT4 = "unsigned whole numbers of 4 bits"
    INT4 = "whole numbers of 4 bits, kept with 8 added"
    FP4 = "E2M1 of 4 bits, as in OCP Microscaling v1.0"
    UINT8 = "unsigned bytes"
    INT8 = "signed bytes, in two's complement"
    FP8 = "E4M3 without infinities (float8_e4m3fn)"

    @property
    def bits(self) -> int:
        return 4 if self in (Codes.UINT4, Codes.INT4, Codes.FP4) else 8

    def table(self, device: torch.device = torch.device("cpu")) -> Tensor:
        """Return the number that each code stands for, float32 [2 ** bits]. It is kept, and the same at each call."""
        return _table(self, device)


@cache
def _table(kind: Codes, device: torch.device) -> Tensor:
    # Made once for each device: a copy from the host, at each product, would make the host wait for the device.
    codes = torch.arange(2**kind.bits, dtype=torch.uint8)
    match kind:
        case Codes.UINT4 | Codes.UINT8:
            found = codes.float()
        case Codes.INT4:
            found = codes.float() - 8
        case Codes.INT8:
            found = codes.view(torch.int8).float()
        case Codes.FP8:
            found = codes.view(torch.float8_e4m3fn).float()
        case Codes.FP4:
            half = torch.tensor((0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0))
            found = torch.cat((half, -half))
    return found.to(device)


@dataclass(frozen=True, slots=True)
class Dense:
    """A matrix of floats."""

    matrix: Tensor
    """[out, in] in any float dtype."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape[0], self.matrix.shape[1]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.matrix,)

    def rows(self, which: Rows) -> Dense:
        return Dense(self.matrix[which])

    def columns(self, start: int, length: int) -> Dense:
        return Dense(self.matrix.narrow(1, start, length).contiguous())

    def joins(self, other: Form) -> bool:
        return isinstance(other, Dense) and other.matrix.dtype == self.matrix.dtype

    def dequantised(self) -> Tensor:
        """Return the matrix [out, in] in its own dtype, unlike other forms, which give float32."""
        return self.matrix


@dataclass(frozen=True, slots=True)
class StaticRows:
    """The rounding of all rows of x by numbers that calibration found: clamp(round(x / scale) + offset, -128, 127)."""

    scale: float
    offset: int


@dataclass(frozen=True, slots=True)
class Int8:
    """A matrix of int8, to be multiplied with rows of int8 in exact sums.

    A result is sum * row scale * `scales`, each row rounded symmetrically by its own largest number; with `static`, it
    is (sum + `addend`) * `scales`, where `scales` includes the scale of the rows, and `addend` what their offset adds.
    """

    matrix: Tensor
    """int8 [out, in]."""
    scales: Tensor
    """float32 [out]."""
    static: StaticRows | None = None
    addend: Tensor | None = None
    """int32 [out], exactly where `static` is given."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape[0], self.matrix.shape[1]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.matrix, self.scales, *([] if self.addend is None else [self.addend]))

    def rows(self, which: Rows) -> Int8:
        addend = None if self.addend is None else self.addend[which]
        return replace(self, matrix=self.matrix[which], scales=self.scales[which], addend=addend)

    def columns(self, start: int, length: int) -> Int8:
        """Return some inputs. The addend stays with the first of all, as partial sums are added up afterwards."""
        addend = self.addend
        if addend is not None and start:
            addend = torch.zeros_like(addend)
        return replace(self, matrix=self.matrix.narrow(1, start, length).contiguous(), addend=addend)

    def joins(self, other: Form) -> bool:
        return isinstance(other, Int8) and other.static == self.static

    def dequantised(self) -> Tensor:
        """Return float32 [out, in]; the rounding of rows is not in it."""
        scales = self.scales if self.static is None else self.scales / self.static.scale
        return self.matrix.float() * scales[:, None]


@dataclass(frozen=True, slots=True)
class Grouped:
    """A matrix of codes of 4 or 8 bits to be multiplied with rows of floats; `group` inputs of an output share a scale.

    The number at [o, i] is table[code] * scales[o, i // group] + shifts[o, i // group]. With `order`, column i of the
    codes belongs to input order[i] of x.
    """

    kind: Codes
    codes: Tensor
    """uint8 [out, in], or two of 4 bits a byte [out, in / 2], the earlier input in the low half."""
    scales: Tensor
    """float32 [out, groups]."""
    shifts: Tensor | None
    """float32 [out, groups]; None = zeros."""
    group: int
    """Inputs of a group, even where codes have 4 bits; the last group may have fewer."""
    order: Tensor | None = None
    """int64 [in], a permutation."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1] * (8 // self.kind.bits)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(x for x in (self.codes, self.scales, self.shifts, self.order) if x is not None)

    def rows(self, which: Rows) -> Grouped:
        shifts = None if self.shifts is None else self.shifts[which]
        return replace(self, codes=self.codes[which], scales=self.scales[which], shifts=shifts)

    def columns(self, start: int, length: int) -> Grouped | Dense:
        """Return some inputs of x; dequantised where `order` scatters them over groups, or where they begin or end
        within a byte.
        """
        stop, per_byte = start + length, 8 // self.kind.bits
        if self.order is not None or start % per_byte or length % per_byte:
            return Dense(self.dequantised()[:, start:stop].contiguous())
        # The range has to begin and end with a group: groups are cut into smaller ones, whose size divides both ends,
        # and scales are repeated. At the end of the matrix a shorter group is allowed.
        width = self.shape[1]
        group = gcd(self.group, start, *([] if stop == width else [stop]))
        again, first, last = self.group // group, start // group, -(-stop // group)
        scales, shifts = (
            None if x is None else x.repeat_interleave(again, 1)[:, first:last].contiguous()
            for x in (self.scales, self.shifts)
        )
        assert scales is not None
        codes = self.codes[:, start // per_byte : stop // per_byte].contiguous()
        return replace(self, codes=codes, scales=scales, shifts=shifts, group=group)

    def joins(self, other: Form) -> bool:
        if not isinstance(other, Grouped) or (other.kind, other.group) != (self.kind, self.group):
            return False
        if self.order is None or other.order is None:
            same_order = self.order is other.order
        else:
            same_order = self.order.is_meta or torch.equal(self.order, other.order)
        return same_order and (self.shifts is None) == (other.shifts is None)

    def unpacked(self) -> Tensor:
        """Return the codes one a byte, uint8 [out, in]."""
        if self.kind.bits == 8:
            return self.codes
        return torch.stack((self.codes & 15, self.codes >> 4), dim=-1).flatten(1)

    def dequantised(self) -> Tensor:
        """Return float32 [out, in], columns in the order of x."""
        numbers = self.kind.table(self.codes.device)[self.unpacked().int()]
        width = numbers.shape[1]
        numbers = numbers * self.scales.repeat_interleave(self.group, 1)[:, :width]
        if self.shifts is not None:
            numbers = numbers + self.shifts.repeat_interleave(self.group, 1)[:, :width]
        if self.order is not None:
            numbers = torch.empty_like(numbers).index_copy_(1, self.order, numbers)
        return numbers


Form = Dense | Int8 | Grouped


def packed_nibbles(codes: Tensor) -> Tensor:
    """Pack uint8 codes [out, in] below 16 -> [out, in / 2], as `Grouped` keeps them."""
    return codes[:, ::2] | (codes[:, 1::2] << 4)


def zeros_of(form: Grouped) -> Tensor | None:
    """Return zero points, float32 [out, groups]: whole numbers of 0 to 255 whose product with -scale is exactly the
    shift. None if there are no such numbers.
    """
    assert form.shifts is not None
    zeros = (form.shifts / -form.scales).round().nan_to_num()
    fits = bool(((zeros >= 0) & (zeros <= 255)).all()) and torch.equal(-zeros * form.scales, form.shifts)
    return zeros if fits else None


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """Return parts of a matrix, or of a bias, as one tensor."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if first.is_meta:  # torch.cat would load torch's compiler for it, which takes longer than loading a model
        return first.new_empty(sum(map(len, parts)), *first.shape[1:])
    return torch.cat(list(parts))


def runs(parts: Sequence[Form]) -> list[list[Form]]:
    """Group the parts of a matrix into runs of neighbours that are kept alike, and so can be joined."""
    found: list[list[Form]] = []
    for part in parts:
        if found and found[-1][0].joins(part):
            found[-1].append(part)
        else:
            found.append([part])
    return found


def joined(run: Sequence[Form]) -> Form:
    """Return forms that are kept alike, one below the other, as one."""
    first = run[0]
    if len(run) == 1:
        return first
    names = {Dense: ("matrix",), Int8: ("matrix", "scales", "addend"), Grouped: ("codes", "scales", "shifts")}
    present = [name for name in names[type(first)] if getattr(first, name) is not None]
    whole: dict[str, Any] = {name: stacked([getattr(form, name) for form in run]) for name in present}
    return replace(first, **whole)
