"""Building blocks: linear layers and experts, norms, rotary positions.

Each pulls its weights from a view, knows its own sharding, and calls the platform's ops. The view knows how a weight is
stored, a layer how it is sharded, and models know neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from tilewise.parallel.mesh import Mesh, Share
from tilewise.platforms.forms import Rows
from tilewise.platforms.ops import Ops
from tilewise.platforms.weights import Use, Weight
from tilewise.weights.view import View, combined


class ColumnLinear:
    """One or several matrices that read the same input, as one product; ranks split the outputs of each.

    `parts` maps each module's name to its number of outputs. Those named in `shares` are not cut into equal parts.
    """

    def __init__(
        self,
        view: View,
        parts: Mapping[str, int],
        inputs: int,
        bias: bool,
        mesh: Mesh,
        shares: Mapping[str, Share] | None = None,
    ) -> None:
        given = shares or {}
        found = [
            view.linear(
                *(name, outputs, inputs, bias),
                output_share=given[name] if name in given else mesh.share(outputs, f"outputs of {name}"),
            )
            for name, outputs in parts.items()
        ]
        self.sizes = [part.matrix.shape[0] for part in found]
        self._weight = view.store(*combined(found))

    def __call__(self, x: Tensor, ops: Ops) -> Tensor:
        return self._weight.apply(x, ops)

    def gelu(self, x: Tensor, ops: Ops) -> Tensor:
        """Return GELU of what a call gives."""
        return ops.linear_gelu(x, self._weight)


class RowLinear:
    """A matrix whose inputs are split over ranks; what it gives is a part of the sum over them."""

    def __init__(self, view: View, name: str, inputs: int, outputs: int, bias: bool, mesh: Mesh) -> None:
        found = view.linear(name, outputs, inputs, bias, input_share=mesh.share(inputs, f"inputs of {name}"))
        self._weight = view.store([found.matrix], found.bias)

    def __call__(self, x: Tensor, ops: Ops) -> Tensor:
        return self._weight.apply(x, ops)


@dataclass(frozen=True, slots=True)
class ExpertShare:
    """A rank's share of a layer's `count` experts: those `here` whole, or of each the `inner` part of its MLP."""

    count: int
    here: frozenset[int]
    inner: Share | None
    """Part of each expert's inner axis; None = the whole."""

    @classmethod
    def of(cls, mesh: Mesh, count: int, inner: int) -> ExpertShare:
        own = mesh.experts(count)
        if own is None:
            return cls(count, frozenset(range(count)), mesh.share(inner, "inputs of an expert's down_proj"))
        return cls(count, frozenset(own), None)

    def store(
        self,
        view: View,
        parts: Mapping[str, int],
        inputs: int,
        bias: bool = False,
        output_share: Share | None = None,
        input_share: Share | None = None,
        rows: Rows | None = None,
    ) -> tuple[Weight | None, ...]:
        """Store each expert's matrices that read the same input, by module and number of outputs, as one weight.

        A rank keeps a share of their outputs or inputs, or certain `rows` of them. None = all. Experts of other ranks
        are None.
        """

        def stored(expert: View) -> Weight:
            found = [
                expert.linear(name, outputs, inputs, bias, output_share, input_share) for name, outputs in parts.items()
            ]
            if rows is not None:
                found = [part.rows(rows) for part in found]
            return expert.store(*combined(found), Use.EXPERT)

        return tuple(stored(view.at(number)) if number in self.here else None for number in range(self.count))


NormKind = Literal["layer_norm", "rms_norm"]


class Norm(Protocol):
    def __call__(self, x: Tensor, ops: Ops) -> Tensor: ...

    def after(self, x: Tensor, scale: Tensor | None, y: Tensor, ops: Ops) -> tuple[Tensor, Tensor]:
        """Return x + scale * y, and the norm of it."""
        ...


class RMSNorm:
    def __init__(self, view: View, width: int, eps: float) -> None:
        self.weight = view.tensor("weight", width)
        self._eps = eps

    def __call__(self, x: Tensor, ops: Ops) -> Tensor:
        return ops.rms_norm(x, self.weight, self._eps)

    def after(self, x: Tensor, scale: Tensor | None, y: Tensor, ops: Ops) -> tuple[Tensor, Tensor]:
        return ops.add_rms_norm(x, scale, y, self.weight, self._eps)


class LayerNorm:
    def __init__(self, view: View, width: int, eps: float) -> None:
        self._weight = view.tensor("weight", width)
        self._bias = view.tensor("bias", width)
        self._eps = eps

    def __call__(self, x: Tensor, ops: Ops) -> Tensor:
        return ops.layer_norm(x, self._weight, self._bias, self._eps)

    def after(self, x: Tensor, scale: Tensor | None, y: Tensor, ops: Ops) -> tuple[Tensor, Tensor]:
        return ops.add_layer_norm(x, scale, y, self._weight, self._bias, self._eps)


def norm_of(kind: NormKind, view: View, width: int, eps: float) -> Norm:
    return LayerNorm(view, width, eps) if kind == "layer_norm" else RMSNorm(view, width, eps)


class ResidualStream:
    """The rows [..., width] that go through a model's blocks, each of which adds to them.

    What is added waits for the next norm, which is of the sum: one kernel makes both, and rows are read once.
    """

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows
        self._waiting: tuple[Tensor | None, Tensor] | None = None

    def normed(self, norm: Norm, ops: Ops) -> Tensor:
        """Return the norm of the rows, with all that was added."""
        if self._waiting is None:
            return norm(self._rows, ops)
        self._rows, normed = norm.after(self._rows, *self._waiting, ops)
        self._waiting = None
        return normed

    def add(self, scale: Tensor | None, y: Tensor) -> None:
        """Add scale [width] * y, or y itself; rows have been normed since the last call."""
        assert self._waiting is None
        self._waiting = scale, y

    def sum(self, ops: Ops) -> Tensor:
        """Return the rows, with all that was added."""
        return self._rows if self._waiting is None else ops.add_scaled(self._rows, *self._waiting)


RopeKind = Literal["default", "dynamic", "longrope", "yarn"]


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """The base frequency and how it is stretched; which fields count depends on `kind`."""

    theta: float
    trained_length: int
    kind: RopeKind = "default"
    factor: float = 1.0
    original_length: int = 0
    """longrope, yarn: the length before stretching."""
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    """longrope: a divisor for each frequency, up to `original_length` and beyond."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    """yarn: turns over the original length from which on frequencies stay (`beta_fast`), and below which they are
    divided (`beta_slow`); `truncate` rounds the ends of the ramp between to whole pairs."""
    attention_factor: float | None = None
    """longrope, yarn: the factor on cos and sin, where a config gives it instead of leaving it to the formula."""


class RopeTable:
    """The cos and sin of all positions, float32 [context, width / 2] each, stretched to long contexts in any way.

    Source of the formulas: huggingface/transformers `modeling_rope_utils.py`. Where the reference changes frequencies
    as a sequence grows (dynamic, longrope), which contradicts keys that are cached, they follow from the engine's
    context here, once and for all.
    """

    def __init__(self, config: RopeConfig, width: int, context: int, device: torch.device) -> None:
        frequencies, scale = _FREQUENCIES[config.kind](config, width, context)
        angles = torch.outer(torch.arange(context, dtype=torch.float32), frequencies)
        self._cos, self._sin = (angles.cos() * scale).to(device), (angles.sin() * scale).to(device)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return torch.index_select(self._cos, 0, positions), torch.index_select(self._sin, 0, positions)


Frequencies = tuple[Tensor, float]
"""Radians a position [width / 2], and a factor on cos and sin."""


def _plain(theta: float, width: int) -> Tensor:
    return 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)


def _default(config: RopeConfig, width: int, context: int) -> Frequencies:
    return _plain(config.theta, width), 1.0


def _dynamic(config: RopeConfig, width: int, context: int) -> Frequencies:
    """Enlarge the base beyond the trained length (NTK), and change nothing up to it."""
    if context <= config.trained_length:
        return _default(config, width, context)
    stretch = config.factor * context / config.trained_length - (config.factor - 1)
    return _plain(config.theta * float(stretch ** (width / (width - 2))), width), 1.0


def _longrope(config: RopeConfig, width: int, context: int) -> Frequencies:
    """Divide each frequency by a divisor of its own (LongRoPE, arXiv 2402.13753)."""
    divisors = config.long_factor if context > config.original_length else config.short_factor
    scale = config.attention_factor
    if scale is None:
        stretch = config.trained_length / config.original_length
        scale = math.sqrt(1 + math.log(stretch) / math.log(config.original_length)) if stretch > 1 else 1.0
    return _plain(config.theta, width) / torch.tensor(divisors), scale


def _yarn(config: RopeConfig, width: int, context: int) -> Frequencies:
    """Leave fast frequencies and divide slow ones, with a ramp in between (YaRN, arXiv 2309.00071)."""

    def pair_turning(turns: float) -> float:
        return width * math.log(config.original_length / (turns * 2 * math.pi)) / (2 * math.log(config.theta))

    low, high = pair_turning(config.beta_fast), pair_turning(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    ramp = ((torch.arange(width // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    plain = _plain(config.theta, width)
    scale = config.attention_factor
    if scale is None:
        scale = 0.1 * math.log(config.factor) + 1.0
    return plain * (1 - ramp) + plain / config.factor * ramp, scale


_FREQUENCIES = {"default": _default, "dynamic": _dynamic, "longrope": _longrope, "yarn": _yarn}
