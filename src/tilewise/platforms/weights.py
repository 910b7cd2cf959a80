"""Forms in which a matrix is kept that only multiplies, in plain torch. Platforms have their own beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from tilewise.platforms.forms import Codes, Dense, Form, Grouped, Int8, StaticRows, joined, runs
from tilewise.platforms.kv_cache import quantise

if TYPE_CHECKING:
    from tilewise.platforms.ops import Ops

LEVELS = 127
"""Levels of int8 on either side of zero."""
_E4M3 = 448.0  # the largest number of float8_e4m3fn
_LEAST = 1e-30  # so that zeros have a scale
_EXACT = 1023
"""Products of int8 whose sum float32 holds exactly, in whatever order they are added: 1023 * 128 * 128 < 2^24."""
_OUTPUTS = 4096
"""Outputs of a matrix that are float32 at a time."""


class Weight(Protocol):
    """A matrix [out, in] and its bias, in the form in which a platform keeps them to multiply with."""

    @property
    def nbytes(self) -> int:
        """Bytes that the weight keeps, bias included."""
        ...

    def apply(self, x: Tensor, ops: Ops) -> Tensor:
        """Multiply x [..., in] by the matrix and add the bias -> [..., out]."""
        ...


class Use(Enum):
    """The use of a matrix beside multiplying, on which the form may depend in which a platform keeps it."""

    ALONE = "nothing else"
    SHARED = "kept for something else as well"
    EXPERT = "one of many experts, which a device may multiply together"


class Store(Protocol):
    """A function that turns a matrix into the form in which it is kept to multiply with."""

    def __call__(self, parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
        """Keep a matrix in parts [some of out, in], one below the other and each in its form, and its bias [out].

        Meta tensors, which are shapes without numbers, make a weight of meta tensors.
        """
        ...


class Kept:
    """A weight that is a dataclass: it keeps the tensors among its fields, and those of a form among them."""

    __slots__ = ()

    @property
    def nbytes(self) -> int:
        values = (getattr(self, one.name) for one in fields(self))  # type: ignore[arg-type]  # of its subclasses
        return sum(
            nbytes_of(*(value.tensors if isinstance(value, Form) else [value]))
            for value in values
            if isinstance(value, Tensor | Form)
        )


@dataclass(frozen=True, slots=True)
class DenseWeight(Kept):
    """The matrix [out, in] and the bias as they came, in the model's dtype."""

    matrix: Tensor
    bias: Tensor | None

    def apply(self, x: Tensor, ops: Ops) -> Tensor:
        return ops.linear(x, self.matrix, self.bias)


@dataclass(frozen=True, slots=True)
class Int8Weight(Kept):
    """An `Int8` matrix. Sums are exact, so a row's result does not depend on the order in which they are made."""

    form: Int8
    bias: Tensor | None

    def apply(self, x: Tensor, ops: Ops) -> Tensor:
        rows, form = x.flatten(0, -2), self.form
        if form.static is None:
            levels, scales = quantise_rows(rows)
            y = int8_sums(levels, form.matrix).float() * (scales * form.scales)
        else:
            sums = int8_sums(rounded_rows(rows, form.static), form.matrix)
            y = (sums if form.addend is None else sums + form.addend).float() * form.scales
        if self.bias is not None:
            y = y + self.bias.float()
        return y.to(x.dtype).view(*x.shape[:-1], len(form.matrix))


@dataclass(frozen=True, slots=True)
class GroupedWeight(Kept):
    """A `Grouped` matrix, which is dequantised for each product, some outputs at a time."""

    form: Grouped
    bias: Tensor | None

    def apply(self, x: Tensor, ops: Ops) -> Tensor:
        outputs, some = self.form.shape[0], []
        for first in range(0, outputs, _OUTPUTS):
            which = slice(first, first + _OUTPUTS)
            bias = None if self.bias is None else self.bias[which]
            some.append(ops.linear(x, self.form.rows(which).dequantised().to(x.dtype), bias))
        return some[0] if len(some) == 1 else torch.cat(some, dim=-1)


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Weights that read the same input and are kept in different forms."""

    weights: tuple[Weight, ...]

    @property
    def nbytes(self) -> int:
        return sum(weight.nbytes for weight in self.weights)

    def apply(self, x: Tensor, ops: Ops) -> Tensor:
        return torch.cat([weight.apply(x, ops) for weight in self.weights], dim=-1)


def nbytes_of(*tensors: Tensor | None) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def as_it_came(parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
    """Keep a matrix in plain torch, in the form that it has: a `Store`."""
    return side_by_side(parts, bias, plain_weight)


def plain_weight(run: Sequence[Form], bias: Tensor | None) -> Weight:
    """Keep forms that are kept alike as one weight in plain torch."""
    form = joined(run)
    match form:
        case Dense(matrix):
            return DenseWeight(matrix, bias)
        case Int8():
            return Int8Weight(form, bias)
        case Grouped():
            return GroupedWeight(form, bias)


def side_by_side(
    parts: Sequence[Form], bias: Tensor | None, keep: Callable[[Sequence[Form], Tensor | None], Weight]
) -> Weight:
    """Put the weights side by side that `keep` makes of each run of parts kept alike and of its piece of the bias."""
    alike = runs(parts)
    if len(alike) == 1:
        return keep(parts, bias)
    sizes = [sum(part.shape[0] for part in run) for run in alike]
    pieces: Sequence[Tensor | None] = [None] * len(sizes) if bias is None else bias.split(sizes)
    return SideBySide(tuple(keep(run, piece) for run, piece in zip(alike, pieces, strict=True)))


def rounded_to_int8(form: Form) -> Form:
    """Round floats to int8, with a scale for each output; return other forms as they are."""
    if not isinstance(form, Dense):
        return form
    if form.matrix.is_meta:
        scales = torch.empty(len(form.matrix), dtype=torch.float32, device="meta")
        return Int8(torch.empty(form.matrix.shape, dtype=torch.int8, device="meta"), scales)
    rounded, scales = quantise_rows(form.matrix)
    return Int8(rounded, scales[:, 0])


def rounded_to_fp8(form: Form) -> Form:
    """Round floats to E4M3, with a scale for each output, by which its largest number becomes the largest of E4M3;
    return other forms as they are. The numbers are those that `tilewise quantize --scheme fp8` writes.
    """
    if not isinstance(form, Dense):
        return form
    outputs, inputs = form.shape
    if form.matrix.is_meta:
        scales = torch.empty(outputs, 1, device="meta")
        return Grouped(Codes.FP8, torch.empty(form.shape, dtype=torch.uint8, device="meta"), scales, None, inputs)
    x = form.matrix.float()
    scales = (x.abs().amax(1, keepdim=True) / _E4M3).clamp(min=_LEAST)
    codes = (x / scales).clamp(-_E4M3, _E4M3).to(torch.float8_e4m3fn)
    return Grouped(Codes.FP8, codes.view(torch.uint8), scales, None, inputs)


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round [n, width] to int8 with float32 scales [n, 1], symmetrically: each row's largest number becomes 127."""
    levels, scales = quantise(x, torch.int8)
    return levels, scales.unsqueeze(-1)


def rounded_rows(x: Tensor, static: StaticRows) -> Tensor:
    """Round [n, width] to int8 of the same shape, by the scale and the offset that calibration found."""
    return ((x.float() / static.scale).round() + static.offset).clamp(-LEVELS - 1, LEVELS).to(torch.int8)


def int8_sums(rows: Tensor, matrix: Tensor) -> Tensor:
    """Multiply int8 rows [n, in] by matrix [out, in] -> int32 [n, out], exactly."""
    sums = torch.zeros(len(rows), len(matrix), dtype=torch.int32, device=rows.device)
    for part, weights in zip(sums.split(_OUTPUTS, 1), matrix.split(_OUTPUTS), strict=True):
        for some, those in zip(rows.split(_EXACT, 1), weights.split(_EXACT, 1), strict=True):
            part += (some.float() @ those.float().T).to(torch.int32)
    return sums
