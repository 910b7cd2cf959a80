"""Rotary position embedding: the table of cosines and sines, for each way of stretching it to long contexts.

Source of the formulas: huggingface/transformers `modeling_rope_utils.py`. Where the reference changes frequencies as a
sequence grows (dynamic, longrope), which contradicts keys that are cached, they follow from the engine's context here,
once and for all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

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
    """The cos and sin of all positions, float32 [context, width / 2] each."""

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
