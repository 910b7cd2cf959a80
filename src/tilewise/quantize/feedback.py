"""Error feedback: the error of rounding one input's weights is made up for by the weights of the inputs that follow.

The method is GPTQ (Frantar and others, arXiv 2210.17323), with scales of groups that are fixed before the first code is
chosen, so that inputs can be taken in the order of their importance without the files having to say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tilewise.quantize.rounding import CHUNK_NUMBERS, RoundedMatrix, Rounding, round_matrix

_BLOCK = 128
"""Inputs that are rounded before the rest of the matrix is updated in one product."""
_DAMPING = 0.01
"""Fraction of the mean of the moments' diagonal that is added to the diagonal."""


def round_with_feedback(matrix: Tensor, moments: Sequence[Tensor], rounding: Rounding, name: str) -> RoundedMatrix:
    """Round a matrix [out, in] so that its products with activations change little.

    `moments` are sums of x^T x over activations, float32 [width, width] for one run of inputs after the other. Where
    they hold nothing, or cannot be inverted, numbers are rounded to the nearest. Raises InvalidCheckpoint where the
    matrix is not finite.
    """
    if len(moments) > 1 and rounding.group is None:  # each run would choose a scale, an output has one
        return round_matrix(matrix, rounding, name)
    parts, first = [], 0
    for some in moments:
        parts.append(_round_inputs(matrix[:, first : first + len(some)], some, rounding, name))
        first += len(some)
    if len(parts) == 1:
        return parts[0]
    levels, scales = (torch.cat([getattr(part, kind) for part in parts], 1) for kind in ("levels", "scales"))
    zeros = torch.cat([part.zeros for part in parts if part.zeros is not None], 1) if rounding.asymmetric else None
    return replace(parts[0], levels=levels, scales=scales, zeros=zeros)


def relative_output_error(matrix: Tensor, rounded: RoundedMatrix, moments: Sequence[Tensor]) -> float | None:
    """Return the root mean square change of the products with activations over that of the products themselves.

    None where no activations were seen. Products between different runs of inputs are left out.
    """
    # The sum of (x w)^2 over all rows x is w^T (X^T X) w: the moments are enough, no activations have to be kept.
    missed = whole = 0.0
    step = max(1, CHUNK_NUMBERS // matrix.shape[1])
    for first in range(0, len(matrix), step):
        which = slice(first, first + step)
        floats = matrix[which].float()
        change = rounded.rows(which).dequantised() - floats
        at = 0
        for some in moments:
            inputs = slice(at, at + len(some))
            for numbers, add in ((floats[:, inputs], True), (change[:, inputs], False)):
                found = float((numbers @ some * numbers).sum(dtype=torch.float64))
                whole, missed = (whole + found, missed) if add else (whole, missed + found)
            at += len(some)
    return float((max(missed, 0.0) / whole) ** 0.5) if whole > 0 else None


def _round_inputs(matrix: Tensor, moments: Tensor, rounding: Rounding, name: str) -> RoundedMatrix:
    """Round one run of inputs, for all outputs."""
    factor = _inverse_factor(moments)
    plain = round_matrix(matrix, rounding, name, None if factor is None else moments.diagonal())
    if factor is None:
        return plain
    order, upper = factor
    step = max(1, CHUNK_NUMBERS // matrix.shape[1])
    levels = torch.empty(matrix.shape, dtype=torch.int8)
    for first in range(0, len(matrix), step):  # outputs have nothing to do with each other
        which = slice(first, first + step)
        chosen = _choose(matrix[which].T[order].float(), plain.rows(which), order, upper, rounding)
        levels[which] = torch.empty_like(chosen).index_copy_(0, order, chosen).T
    return replace(plain, levels=levels)


def _choose(work: Tensor, grid: RoundedMatrix, order: Tensor, upper: Tensor, rounding: Rounding) -> Tensor:
    """Return the codes int8 [in, out] of `work` float32 [in, out], whose inputs stand in `order`; it is overwritten."""
    # GPTQ: with U (`upper`) such that (X^T X)^-1 = U^T U, the error of rounding input i is best made up for by taking
    # error / U[i, i] * U[i, j] off each later input j. Inside a block, an input takes in the errors before it when its
    # turn comes; all inputs behind the block take them in at its end, in one product.
    levels = torch.empty(work.shape, dtype=torch.int8)
    scales = grid.scales.float().T.contiguous()
    zeros = torch.zeros_like(scales) if grid.zeros is None else grid.zeros.float().T.contiguous()
    groups = (order // (rounding.group or len(order))).tolist()
    for first in range(0, len(groups), _BLOCK):
        stop = min(first + _BLOCK, len(groups))
        missed = torch.empty(stop - first, work.shape[1])
        for at in range(first, stop):
            done = at - first
            numbers = torch.addmv(work[at], missed[:done].T, upper[first:at, at], alpha=-1)
            scale, zero = scales[groups[at]], zeros[groups[at]]
            code = (numbers / scale).round_().add_(zero).clamp_(rounding.lowest, rounding.highest)
            levels[at] = code
            missed[done] = numbers.sub_(code.sub_(zero).mul_(scale)).div_(upper[at, at])
        work[stop:].addmm_(upper[first:stop, stop:].T, missed, alpha=-1)
    return levels


def _inverse_factor(moments: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the order of inputs by importance, and the upper Cholesky factor of the inverse of their moments.

    None where the moments are all zero, are not finite, or cannot be inverted.
    """
    diagonal = moments.diagonal()
    if not bool(diagonal.sum() > 0) or not bool(torch.isfinite(diagonal).all()):
        return None
    order = diagonal.argsort(descending=True)
    damped = moments[order][:, order]
    damping = _DAMPING * float(diagonal.mean())
    for times in (1, 9, 90):  # in sum one hundredth, a tenth, all of the mean
        damped.diagonal().add_(damping * times)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if int(failed):
            continue
        inverse = torch.cholesky_inverse(factor)
        del factor
        factor, failed = torch.linalg.cholesky_ex(inverse, upper=True)
        if not int(failed):
            return order, factor
    return None
