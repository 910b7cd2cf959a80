"""Rotary position embedding: the table of cosines and sines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Base frequency and how it is stretched for long contexts.

    `dynamic` (NTK by parts of the base, huggingface/transformers `modeling_rope_utils.py`) does nothing up to
    `trained_length`. Beyond it the reference recomputes the base as a sequence grows, which contradicts keys that
    are cached; here the base follows from the engine's context length once and for all.
    """

    theta: float
    trained_length: int
    kind: Literal["default", "dynamic"] = "default"
    factor: float = 1.0

    def base(self, width: int, context: int) -> float:
        if self.kind == "default" or context <= self.trained_length:
            return self.theta
        stretch = self.factor * context / self.trained_length - (self.factor - 1)
        return self.theta * float(stretch ** (width / (width - 2)))


class RopeTable:
    """cos and sin, float32 [context, width / 2] each."""

    def __init__(self, config: RopeConfig, width: int, context: int, device: torch.device) -> None:
        exponents = torch.arange(0, width, 2, dtype=torch.float32, device=device) / width
        frequencies = 1.0 / config.base(width, context) ** exponents
        angles = torch.outer(torch.arange(context, dtype=torch.float32, device=device), frequencies)
        self._cos, self._sin = angles.cos(), angles.sin()

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self._cos[positions], self._sin[positions]
