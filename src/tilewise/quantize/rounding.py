"""Rounding of matrices, with a scale for each output or for each group of inputs: to the nearest code, or with error
feedback, by which the weights of the inputs that follow make up for the error of rounding those of one.

Error feedback is GPTQ (Frantar and others, arXiv 2210.17323), with scales of groups that are fixed before the first
code is chosen, so that inputs can be taken in the order of their importance without the files having to say so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tilewise.errors import GET_AGAIN, InvalidCheckpoint, InvalidConfig
from tilewise.platforms.forms import StaticRows
from tilewise.quantize import FP8, GROUPS, W4A16, QuantizeOptions

logger = logging.getLogger("tilewise")

INT8 = 127
"""The largest level of int8 on either side of zero."""
E4M3 = 448.0
"""The largest number of float8_e4m3fn."""
_TRIED = tuple(1.08 - 0.05 * step for step in range(8))
"""Fractions of a group's largest number that its largest code may stand for; the one with the least error is taken.

Below 1 the largest number is cut off, and all others have finer steps; above 1 codes are coarser, and may meet more of
the numbers.
"""
_USUAL_GROUP = 128
_CHUNK_NUMBERS = 2**24
"""Most numbers of a matrix that are float32 at a time."""
_BLOCK = 128
"""Inputs that are rounded before the rest of the matrix is updated in one product."""
_DAMPING = 0.01
"""Fraction of the mean of the moments' diagonal that is added to the diagonal."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """The way in which a scheme rounds matrices."""

    bits: int
    group: int | None = None
    """Inputs that share a scale; None = all of an output."""
    asymmetric: bool = False
    floats: bool = False
    """True if codes are numbers of float8_e4m3fn."""
    scale_dtype: torch.dtype = torch.float32
    """Dtype in which the files keep scales."""

    @classmethod
    def of(cls, options: QuantizeOptions, group: int | None, model_dtype: torch.dtype) -> Rounding:
        """Return a scheme's rounding. Scales of groups have the model's dtype, as readers of packed files expect."""
        if options.scheme == W4A16:
            return cls(4, group, options.asymmetric, scale_dtype=model_dtype)
        return cls(8, floats=options.scheme == FP8)

    @property
    def lowest(self) -> int:
        return -(1 << self.bits - 1)

    @property
    def highest(self) -> int:
        return (1 << self.bits - 1) - 1

    def blank(self, outputs: int, inputs: int) -> RoundedMatrix:
        """Return a rounded matrix of meta tensors."""
        groups = 1 if self.group is None else inputs // self.group
        kind = torch.float8_e4m3fn if self.floats else torch.int8
        levels = torch.empty(outputs, inputs, dtype=kind, device="meta")
        scales = torch.empty(outputs, groups, dtype=self.scale_dtype, device="meta")
        zeros = torch.empty(outputs, groups, dtype=torch.int8, device="meta") if self.asymmetric else None
        return RoundedMatrix(levels, scales, zeros)


@dataclass(frozen=True, slots=True)
class RoundedMatrix:
    """A rounded matrix [out, in], whose codes each stand for (level - zero) * scale."""

    levels: Tensor
    """int8 or float8_e4m3fn [out, in]."""
    scales: Tensor
    """[out, groups] in the dtype of the files."""
    zeros: Tensor | None
    """int8 [out, groups]; None = all zero."""
    static: StaticRows | None = None
    """Rounding of the activations that it multiplies, where that is known beforehand."""

    def rows(self, which: slice) -> RoundedMatrix:
        zeros = None if self.zeros is None else self.zeros[which]
        return replace(self, levels=self.levels[which], scales=self.scales[which], zeros=zeros)

    def dequantised(self) -> Tensor:
        """Return the numbers that the codes stand for, float32 [out, in]."""
        group = self.levels.shape[1] // self.scales.shape[1]
        numbers = self.levels.float()
        if self.zeros is not None:
            numbers -= self.zeros.float().repeat_interleave(group, 1)
        return numbers * self.scales.float().repeat_interleave(group, 1)


def chunks(matrix: Tensor) -> Iterator[slice]:
    """Yield the outputs of a matrix [out, in], as many at a time as may be float32 at once."""
    step = max(1, _CHUNK_NUMBERS // matrix.shape[1])
    yield from (slice(first, first + step) for first in range(0, len(matrix), step))


def group_size(options: QuantizeOptions, inputs: Mapping[str, int]) -> int | None:
    """Return how many inputs share a scale; None = all of an output.

    `inputs` holds the number of inputs of each layer. Unless a size is asked for, the largest one up to 128 is taken
    that divides them all. Raises InvalidConfig where the inputs of some layer are no multiple of the size asked for.
    """
    if options.scheme != W4A16:
        return None
    fits = [group for group in GROUPS if all(count % group == 0 for count in inputs.values())]
    if options.group_size is None:
        chosen = max((group for group in fits if group <= _USUAL_GROUP), default=None)
        if chosen != _USUAL_GROUP:
            least = _USUAL_GROUP if chosen is None else min(group for group in GROUPS if group > chosen)
            module, count = next((name, count) for name, count in inputs.items() if count % least)
            which = "one scale for each output" if chosen is None else f"a scale for {chosen} inputs"
            why = f"no group of {GROUPS[0]} or more divides" if chosen is None else f"{least} does not divide"
            logger.warning(
                "group_size: %s instead of %d, as %s the %d inputs of %s", which, _USUAL_GROUP, why, count, module
            )
        return chosen
    if options.group_size not in fits:
        module, count = next((name, count) for name, count in inputs.items() if count % options.group_size)
        remedy = f"take {max(fits)}" if fits else "leave it out, for one scale an output"
        raise InvalidConfig(
            f"group_size={options.group_size} does not divide the {count} inputs of {module}: {remedy}."
        )
    return options.group_size


def round_matrix(matrix: Tensor, rounding: Rounding, name: str, weights: Tensor | None = None) -> RoundedMatrix:
    """Round a matrix of any float dtype, some outputs at a time. Raises InvalidCheckpoint where it is not finite.

    `name` is what an error calls it. `weights` float32 [in] says how much an error matters at each input when scales
    of groups are chosen.
    """
    parts = []
    for which in chunks(matrix):
        some = matrix[which].float()
        if not torch.isfinite(some).all():
            raise InvalidCheckpoint(f"{name} has numbers that are not finite; {GET_AGAIN}.")
        scales, zeros = find_scales(some, rounding, weights)
        parts.append(RoundedMatrix(to_levels(some, scales, zeros, rounding), scales, zeros))
    return RoundedMatrix(
        torch.cat([part.levels for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.cat([part.zeros for part in parts if part.zeros is not None]) if rounding.asymmetric else None,
    )


def find_scales(matrix: Tensor, rounding: Rounding, weights: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Return scales [out, groups] in the dtype of the files, none of them zero, and zero points int8 of that shape."""
    if rounding.bits == 8:
        largest = matrix.abs().amax(1, keepdim=True)
        return _kept(largest / (E4M3 if rounding.floats else INT8), rounding), None
    groups = matrix.unflatten(1, (-1, rounding.group or matrix.shape[1]))
    per_input = None if weights is None else weights.view(groups.shape[1:])

    def error(scales: Tensor, zeros: Tensor | None) -> Tensor:
        missed = (_grid(groups, scales, zeros, rounding) - groups).square_()
        found: Tensor = (missed if per_input is None else missed * per_input).sum(-1)
        return found

    scales, zeros = _of_groups(groups, rounding, _TRIED[0])
    least = error(scales, zeros)
    for part in _TRIED[1:]:
        others, other_zeros = _of_groups(groups, rounding, part)
        better = (missed := error(others, other_zeros)) < least
        least = torch.minimum(missed, least)
        scales = torch.where(better, others, scales)
        zeros = None if zeros is None or other_zeros is None else torch.where(better, other_zeros, zeros)
    return scales, zeros


def to_levels(matrix: Tensor, scales: Tensor, zeros: Tensor | None, rounding: Rounding) -> Tensor:
    """Return the codes nearest to float32 [out, in], by scales and zero points [out, groups]."""
    groups = matrix.unflatten(1, (scales.shape[1], -1))
    scaled: Tensor = groups / scales.float()[..., None]
    if rounding.floats:
        return scaled.clamp(-E4M3, E4M3).to(torch.float8_e4m3fn).flatten(1)
    levels = scaled.round_()
    if zeros is not None:
        levels += zeros[..., None]
    levels.clamp_(-INT8 if rounding.bits == 8 else rounding.lowest, rounding.highest)
    return levels.to(torch.int8).flatten(1)


def relative_error(matrix: Tensor, rounded: RoundedMatrix) -> float:
    """Return the norm of what rounding changed over the norm of the matrix, computed for some outputs at a time."""
    missed = whole = 0.0
    for which in chunks(matrix):
        floats = matrix[which].float()
        missed += float((rounded.rows(which).dequantised() - floats).square().sum(dtype=torch.float64))
        whole += float(floats.square().sum(dtype=torch.float64))
    return float((missed / whole) ** 0.5) if whole else 0.0


def _of_groups(groups: Tensor, rounding: Rounding, part: float) -> tuple[Tensor, Tensor | None]:
    """Return scales and zero points of groups [out, groups, size] whose outermost codes reach `part` of their range."""
    if not rounding.asymmetric:
        largest = groups.abs().amax(-1)
        # Codes go from -8 to 7: half of that range is 7.5.
        return _kept(largest * (part / (rounding.highest + 0.5)), rounding), None
    low, high = groups.amin(-1).clamp(max=0) * part, groups.amax(-1).clamp(min=0) * part
    scales = _kept((high - low) / (rounding.highest - rounding.lowest), rounding)
    zeros = (rounding.lowest - low / scales.float()).round().clamp(rounding.lowest, rounding.highest)
    return scales, zeros.to(torch.int8)


def _grid(groups: Tensor, scales: Tensor, zeros: Tensor | None, rounding: Rounding) -> Tensor:
    """Return the numbers that groups [out, groups, size] become by rounding."""
    levels = (groups / scales.float()[..., None]).round_()
    shift = torch.zeros(()) if zeros is None else zeros.float()[..., None]
    return ((levels + shift).clamp_(rounding.lowest, rounding.highest) - shift) * scales.float()[..., None]


def _kept(scales: Tensor, rounding: Rounding) -> Tensor:
    """Return scales in the dtype of the files, and above zero: groups of zeros have a scale as well."""
    least = max(torch.finfo(rounding.scale_dtype).tiny, 1e-30)
    return scales.clamp(min=least).to(rounding.scale_dtype)


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
    def energy(weights: Tensor, some: Tensor) -> float:
        return float((weights @ some * weights).sum(dtype=torch.float64))

    missed = whole = 0.0
    for which in chunks(matrix):
        floats = matrix[which].float()
        change = rounded.rows(which).dequantised() - floats
        at = 0
        for some in moments:
            inputs = slice(at, at + len(some))
            whole, missed = whole + energy(floats[:, inputs], some), missed + energy(change[:, inputs], some)
            at += len(some)
    return float((max(missed, 0.0) / whole) ** 0.5) if whole > 0 else None


def _round_inputs(matrix: Tensor, moments: Tensor, rounding: Rounding, name: str) -> RoundedMatrix:
    factor = _inverse_factor(moments)
    plain = round_matrix(matrix, rounding, name, None if factor is None else moments.diagonal())
    if factor is None:
        return plain
    order, upper = factor
    levels = torch.empty(matrix.shape, dtype=torch.int8)
    for which in chunks(matrix):  # outputs have nothing to do with each other
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
