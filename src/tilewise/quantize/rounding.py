"""Rounding of matrices to the nearest code, with a scale for each output or for each group of inputs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tilewise.errors import GET_AGAIN, InvalidCheckpoint, InvalidConfig
from tilewise.platforms.forms import StaticRows
from tilewise.quantize.options import FP8, GROUPS, MODELSLIM, W4A16, W8A16, QuantizeOptions

logger = logging.getLogger("tilewise")

INT8 = 127
"""The largest level of int8 on either side of zero."""
E4M3 = 448.0
"""The largest number of float8_e4m3fn."""
_TRIED = tuple(1.08 - 0.05 * step for step in range(8))
"""Fractions of a group's largest number that its largest code may stand for; the one with the least error is taken."""
_USUAL_GROUP = 128
CHUNK_NUMBERS = 2**24
"""Most numbers of a matrix that are float32 at a time."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """The way in which a scheme rounds matrices."""

    bits: int
    group: int | None = None
    """Inputs that share a scale; None = all of an output."""
    asymmetric: bool = False
    floats: bool = False
    """True if codes are numbers of float8_e4m3fn."""
    packs: bool = False
    """True if files keep several codes in a word."""
    scale_dtype: torch.dtype = torch.float32
    """Dtype in which the files keep scales."""

    @classmethod
    def of(cls, options: QuantizeOptions, group: int | None, model_dtype: torch.dtype) -> Rounding:
        """Return a scheme's rounding. Scales of groups have the model's dtype, as readers of packed files expect."""
        if options.scheme == W4A16:
            return cls(4, group, options.asymmetric, packs=True, scale_dtype=model_dtype)
        return cls(8, floats=options.scheme == FP8, packs=options.scheme == W8A16 and options.format != MODELSLIM)

    @property
    def bits_packed(self) -> int | None:
        return self.bits if self.packs else None

    @property
    def lowest(self) -> int:
        return -(1 << self.bits - 1)

    @property
    def highest(self) -> int:
        return (1 << self.bits - 1) - 1

    def blank(self, outputs: int, inputs: int, static: StaticRows | None = None) -> RoundedMatrix:
        """Return a rounded matrix of meta tensors, to see what the files will hold."""
        groups = 1 if self.group is None else inputs // self.group
        kind = torch.float8_e4m3fn if self.floats else torch.int8
        levels = torch.empty(outputs, inputs, dtype=kind, device="meta")
        scales = torch.empty(outputs, groups, dtype=self.scale_dtype, device="meta")
        zeros = torch.empty(outputs, groups, dtype=torch.int8, device="meta") if self.asymmetric else None
        return RoundedMatrix(levels, scales, zeros, static, self.bits_packed)


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
    bits_packed: int | None = None
    """Bits of a code, where files pack several into a word."""

    def rows(self, which: slice) -> RoundedMatrix:
        """Return some of the outputs."""
        zeros = None if self.zeros is None else self.zeros[which]
        return replace(self, levels=self.levels[which], scales=self.scales[which], zeros=zeros)

    def dequantised(self) -> Tensor:
        """Return the numbers that the codes stand for, float32 [out, in]."""
        group = self.levels.shape[1] // self.scales.shape[1]
        numbers = self.levels.float()
        if self.zeros is not None:
            numbers -= self.zeros.float().repeat_interleave(group, 1)
        return numbers * self.scales.float().repeat_interleave(group, 1)


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
    outputs, inputs = matrix.shape
    step = max(1, CHUNK_NUMBERS // inputs)
    parts = []
    for first in range(0, outputs, step):
        some = matrix[first : first + step].float()
        if not torch.isfinite(some).all():
            raise InvalidCheckpoint(f"{name} has numbers that are not finite; {GET_AGAIN}.")
        scales, zeros = find_scales(some, rounding, weights)
        parts.append(RoundedMatrix(to_levels(some, scales, zeros, rounding), scales, zeros))
    return RoundedMatrix(
        torch.cat([part.levels for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.cat([part.zeros for part in parts if part.zeros is not None]) if rounding.asymmetric else None,
        bits_packed=rounding.bits_packed,
    )


def find_scales(matrix: Tensor, rounding: Rounding, weights: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Return scales [out, groups] in the dtype of the files, none of them zero, and zero points int8 of that shape."""
    if rounding.bits == 8:
        largest = matrix.abs().amax(1, keepdim=True)
        return _kept(largest / (E4M3 if rounding.floats else INT8), rounding), None
    groups = matrix.unflatten(1, (-1, rounding.group or matrix.shape[1]))
    per_input = None if weights is None else weights.view(groups.shape[1:])
    best: tuple[Tensor, Tensor | None] | None = None
    least = torch.full(groups.shape[:2], torch.inf)
    for part in _TRIED:
        scales, zeros = _of_groups(groups, rounding, part)
        missed = (_grid(groups, scales, zeros, rounding) - groups).square_()
        error = (missed if per_input is None else missed * per_input).sum(-1)
        if best is None:
            best, least = (scales, zeros), error
            continue
        better = error < least
        least = torch.where(better, error, least)
        best = (
            torch.where(better, scales, best[0]),
            None if zeros is None or best[1] is None else torch.where(better, zeros, best[1]),
        )
    assert best is not None
    return best


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
    step = max(1, CHUNK_NUMBERS // matrix.shape[1])
    for first in range(0, len(matrix), step):
        which = slice(first, first + step)
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
