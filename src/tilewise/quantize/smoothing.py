"""Smoothing: the range of activations that have outliers is moved, input by input, into the weights that read them.

The method is SmoothQuant (Xiao and others, arXiv 2211.10438), folded into the norms in front. Factors are powers of
two, so that dividing a norm and multiplying the columns of its readers changes exponents alone: before anything is
rounded, the model computes what it did, bit by bit.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tilewise.errors import GET_AGAIN, InvalidCheckpoint, InvalidConfig
from tilewise.models.load import Architecture
from tilewise.quantize import NormFactors
from tilewise.quantize.activations import MeasuredInputs
from tilewise.quantize.modules import Matrix, NormReaders, Places, StageReaders, module_of, readers_of
from tilewise.quantize.rounding import chunks
from tilewise.weights.files import WeightFiles

logger = logging.getLogger("tilewise")

LARGEST_EXPONENT = 10
"""Factors are between 2^-10 and 2^10."""
_POWERS = torch.tensor([2.0**exponent for exponent in range(-LARGEST_EXPONENT, LARGEST_EXPONENT + 1)])
_NORMAL, _FINITE = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
"""Smallest normal and largest float32. bfloat16 has the same, but for the last digits of the largest; float16 is
multiplied in float32."""


@dataclass(frozen=True)
class SmoothedNorm:
    """A norm whose output only linear layers read, and its tensors and readers by their names in the files."""

    stage: str
    tensors: tuple[str, ...]
    """Weight, and bias if it has one: these are divided by the factors."""
    matrices: tuple[Matrix, ...]
    """Readers that are quantised: their columns are multiplied."""
    floats: tuple[str, ...]
    """Readers that stay in floats, such as a router."""

    @property
    def name(self) -> str:
        return self.tensors[0].removesuffix(".weight")


def find_smoothed(architecture: Architecture, files: WeightFiles, matrices: Sequence[Matrix]) -> list[SmoothedNorm]:
    """Return the norms to be smoothed, in the order of the computation.

    Norms that not only linear layers read are left alone, and logged.

    Raises InvalidConfig where no norm is left.
    """
    places = Places.of(architecture, files.names)
    by_module = {matrix.module: matrix for matrix in matrices}
    found, left_alone = [], []
    for stage in readers_of(architecture, places, dict.fromkeys(matrix.stage for matrix in matrices)):
        for norm in stage.norms:
            if not norm.linears:
                continue
            smoothed = _smoothed(norm, stage, places, by_module)
            if smoothed is None:
                left_alone.append(places.found(norm.tensors[0]).module)
            else:
                found.append(smoothed)
    if not found:
        raise InvalidConfig(
            "smooth: no norm of this model has an output that only linear layers read, so there is nothing to fold "
            "factors into; leave smooth out."
        )
    if left_alone:
        shown = ", ".join(left_alone[:5]) + (f" and {len(left_alone) - 5} more" if len(left_alone) > 5 else "")
        logger.warning("smooth: these norms have other readers than linear layers, and are not smoothed: %s", shown)
    return found


def _smoothed(
    norm: NormReaders, stage: StageReaders, places: Places, by_module: dict[str, Matrix]
) -> SmoothedNorm | None:
    """Return a norm whose readers can all be multiplied; None where something else reads it, or the files keep one of
    its readers together with a layer that reads something else.

    At least one reader has to be quantised: nothing is gained where all stay in floats.
    """
    mine, others = (
        {linear: module_of(places, linear.removesuffix(".weight")) for linear in linears}
        for linears in (norm.linears, stage.read_besides(norm))
    )
    matrices = tuple(by_module[module] for module in dict.fromkeys(mine.values()) if module in by_module)
    tensors = [places.found(name) for name in norm.tensors]
    floats = [places.found(linear) for linear, module in mine.items() if module not in by_module]
    whole = all(place.is_whole for place in (*tensors, *floats))
    if norm.others or not whole or not matrices or {*mine.values()} & {*others.values()}:
        return None
    return SmoothedNorm(
        stage.stage, tuple(place.name for place in tensors), matrices, tuple(place.name for place in floats)
    )


class Smoothing:
    """The factors of all norms, computed as samples come to one stage after the other."""

    def __init__(
        self,
        norms: Sequence[SmoothedNorm],
        stages: Sequence[str],
        files: WeightFiles,
        strength: float,
        measure: Callable[[str, str], MeasuredInputs],
        note: Callable[[str, NormFactors], None],
    ) -> None:
        """`stages` are in the order of the computation; `measure` returns what an internal module of a stage reads, and
        is called in that order. `note` is called with each norm's factors once they are known.
        """
        self._files, self._strength, self._measure, self._note = files, strength, measure, note
        self._stages = {stage: number for number, stage in enumerate(stages)}
        self._waiting = deque(norms)
        self._of_matrix = {matrix.module: norm for norm in norms for matrix in norm.matrices}
        self._of_float = {name: norm for norm in norms for name in (*norm.tensors, *norm.floats)}
        self._exponents: dict[str, Tensor] = {}
        """int8 [width], the exponents of each norm's factors."""

    def reach(self, stage: str) -> None:
        """Compute the factors of all norms up to and including a stage, before something else is measured there."""
        while self._waiting and self._stages[self._waiting[0].stage] <= self._stages[stage]:
            norm = self._waiting.popleft()
            exponents = self._exponents_of(norm)
            self._exponents[norm.name] = exponents.to(torch.int8)
            factors = powers(exponents)
            self._note(norm.name, NormFactors(float(factors.mean()), float(factors.max())))

    def norm_of(self, entry: Matrix | str) -> str | None:
        """Return the norm whose factors a matrix, or a tensor in floats, is multiplied with or divided by, if any."""
        norm = self._of_float.get(entry) if isinstance(entry, str) else self._of_matrix.get(entry.module)
        return None if norm is None else norm.name

    def factors_of(self, matrix: Matrix) -> Tensor | None:
        """Return float32 [in], by which columns are multiplied and their inputs divided; None = nothing is changed."""
        norm = self._of_matrix.get(matrix.module)
        if norm is None:
            return None
        self.reach(norm.stage)
        return powers(self._exponents[norm.name])

    def folded_matrix(self, matrix: Matrix, floats: Tensor) -> Tensor:
        """Return a matrix with its columns multiplied; float16 becomes float32, as small numbers would lose digits."""
        factors = self.factors_of(matrix)
        if factors is None:
            return floats
        return multiplied(floats.float() if floats.dtype == torch.float16 else floats, factors)

    def folded(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor that stays in floats, multiplied or divided as the files have to have it."""
        norm = self._of_float.get(name)
        if norm is None:
            return tensor
        self.reach(norm.stage)
        exponents = self._exponents[norm.name]
        return multiplied(tensor, powers(-exponents if name in norm.tensors else exponents))

    def _exponents_of(self, norm: SmoothedNorm) -> Tensor:
        """Return the exponent of each input's factor; 0 where some number could not be multiplied exactly."""
        inputs = self._measure(norm.stage, norm.matrices[0].reader).largest_by_input()
        largest, least = self._extremes(norm)
        if inputs is None:
            return torch.zeros(len(largest), dtype=torch.int64)
        exponents = balanced(inputs, largest, self._strength)
        factors = powers(exponents)
        # Multiplying by a power of two is exact unless a number overflows or becomes subnormal. Matrices are checked by
        # their extremes, in float32; tensors that stay in floats by the product itself, in the dtype that they keep.
        exact = (largest * factors <= _FINITE) & (least * factors >= _NORMAL)
        for name in (*norm.tensors, *norm.floats):
            tensor, by = self._files.tensor(name), powers(-exponents) if name in norm.tensors else factors
            same = multiplied(tensor, by).double() == tensor.double() * by
            exact &= same if same.dim() == 1 else same.all(0)
            self._files.give_back(name)
        return exponents * exact

    def _extremes(self, norm: SmoothedNorm) -> tuple[Tensor, Tensor]:
        """Return the largest magnitude at each input over all readers, and the smallest above zero; float32 [in]."""
        largest, least = torch.zeros(norm.matrices[0].inputs), torch.full((norm.matrices[0].inputs,), torch.inf)
        for name, matrix in self._read(norm):
            for which in chunks(matrix):
                magnitudes = matrix[which].float().abs()
                largest = torch.maximum(largest, magnitudes.amax(0))
                least = torch.minimum(least, magnitudes.masked_fill_(magnitudes == 0, torch.inf).amin(0))
            if not torch.isfinite(largest).all():
                raise InvalidCheckpoint(
                    f"{self._files.path(name)}: the tensor {name} has numbers that are not finite; {GET_AGAIN}."
                )
        return largest, least

    def _read(self, norm: SmoothedNorm) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the matrix of each reader; its memory is given back before the next one."""
        for matrix in norm.matrices:
            yield matrix.source.name, matrix.read(self._files)
            self._files.give_back(matrix.source.name)
        for name in norm.floats:
            yield name, self._files.tensor(name)
            self._files.give_back(name)


def balanced(inputs: Tensor, weights: Tensor, strength: float) -> Tensor:
    """Return the rounded exponents of inputs^strength / weights^(1 - strength), within bounds.

    `inputs` and `weights` are the largest magnitudes at each input. The exponent is 0 where either of them is, or where
    that of the inputs is not finite.
    """
    exponents = strength * inputs.double().log2() - (1 - strength) * weights.double().log2()
    known = torch.isfinite(inputs) & (inputs > 0) & (weights > 0)
    return exponents.round().clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT).where(known, 0.0).to(torch.int64)


def powers(exponents: Tensor) -> Tensor:
    """Return powers of two, float32, exact."""
    return _POWERS[exponents.long() + LARGEST_EXPONENT]


def multiplied(tensor: Tensor, factors: Tensor) -> Tensor:
    """Return a tensor [..., in] times powers of two [in], in its own dtype."""
    return tensor * factors.to(tensor.dtype)
