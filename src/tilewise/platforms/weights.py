"""Forms in which a matrix is kept that only multiplies, in plain torch. Platforms have their own beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tilewise.platforms.base import Ops

LEVELS = 127
"""Of int8 on either side of zero."""
_LEAST = 1e-30  # so that zeros have a scale
_EXACT = 1024
"""Products of int8 whose sum float32 holds exactly, in whatever order they are added: 1024 * 127 * 127 < 2^24."""
_OUTPUTS = 4096
"""That are float32 at a time."""


@dataclass(frozen=True, slots=True)
class DenseWeight:
    """The matrix [out, in] and the bias as they came, in the model's dtype."""

    matrix: Tensor
    bias: Tensor | None

    @property
    def nbytes(self) -> int:
        return self.matrix.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def apply(self, x: Tensor, ops: Ops) -> Tensor:
        return ops.linear(x, self.matrix, self.bias)


def as_it_came(parts: Sequence[Tensor], bias: Tensor | None, shared: bool = False) -> DenseWeight:
    """A `Store`."""
    return DenseWeight(stacked(parts), bias)


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """Parts of a matrix, or of a bias, as one tensor."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if first.is_meta:  # torch.cat would load torch's compiler for it, which takes longer than loading a model
        return first.new_empty(sum(map(len, parts)), *first.shape[1:])
    return torch.cat(list(parts))


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """int8 [out, in] with a scale for each output; rows of x become int8 as they come, each with its own scale.

    Sums are exact, so what a row gives does not depend on how they are made.
    """

    matrix: Tensor
    scales: Tensor
    """float32 [out]"""
    bias: Tensor | None

    @classmethod
    def of(cls, matrix: Tensor, bias: Tensor | None) -> Int8Weight:
        if matrix.is_meta:
            scales = torch.empty(len(matrix), dtype=torch.float32, device="meta")
            return cls(torch.empty(matrix.shape, dtype=torch.int8, device="meta"), scales, bias)
        rounded, scales = quantise_rows(matrix)
        return cls(rounded, scales[:, 0], bias)

    @property
    def nbytes(self) -> int:
        return self.matrix.nbytes + self.scales.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def apply(self, x: Tensor, ops: Ops) -> Tensor:
        rows, scales = quantise_rows(x.flatten(0, -2))
        y = int8_sums(rows, self.matrix).float() * (scales * self.scales)
        if self.bias is not None:
            y = y + self.bias.float()
        return y.to(x.dtype).view(*x.shape[:-1], len(self.matrix))


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """[n, width] -> int8 of the same shape and float32 scales [n, 1]: symmetric, the largest number becoming 127."""
    x = x.float()
    largest = x.abs().amax(-1, keepdim=True).clamp(min=_LEAST)
    levels = torch.full_like(largest, LEVELS)
    # Tensor by tensor, which is a division; with a number torch multiplies by its reciprocal.
    rounded = (x * (levels / largest)).round().clamp(-LEVELS, LEVELS)
    return rounded.to(torch.int8), largest / levels


def int8_sums(rows: Tensor, matrix: Tensor) -> Tensor:
    """int8 rows [n, in] and matrix [out, in] -> int32 [n, out]."""
    sums = torch.zeros(len(rows), len(matrix), dtype=torch.int32, device=rows.device)
    for part, weights in zip(sums.split(_OUTPUTS, 1), matrix.split(_OUTPUTS), strict=True):
        for some, those in zip(rows.split(_EXACT, 1), weights.split(_EXACT, 1), strict=True):
            part += (some.float() @ those.float().T).to(torch.int32)
    return sums
