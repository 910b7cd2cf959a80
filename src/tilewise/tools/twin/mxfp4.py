"""MXFP4: blocks of 32 numbers share a power of two and are four bits each. Source: OCP Microscaling v1.0."""

from __future__ import annotations

import torch
from torch import Tensor

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_BIAS = 127


def quantise(weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [..., n * 32] -> uint8 blocks [..., n, 16], low nibble first; uint8 scales [..., n]; and the values
    [..., n * 32] that they stand for. Weights that are such values come back as they are."""
    magnitudes = torch.tensor(_MAGNITUDES)
    grouped = weights.float().unflatten(-1, (-1, 32))
    exponents = (grouped.abs().amax(-1) / _MAGNITUDES[-1]).log2().ceil()
    scaled = grouped / 2 ** exponents[..., None]
    codes = (scaled.abs()[..., None] - magnitudes).abs().argmin(-1)
    values = magnitudes[codes] * scaled.sign() * 2 ** exponents[..., None]
    codes = codes + 8 * (scaled < 0)
    blocks = codes[..., ::2] + 16 * codes[..., 1::2]
    return blocks.to(torch.uint8), (exponents + _BIAS).to(torch.uint8), values.flatten(-2)
