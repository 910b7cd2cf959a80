"""Matrices of noise in any form, for models with random weights and for timing products."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tilewise.platforms.forms import Codes, Dense, Form, Grouped, Int8

_SPREADS = {Codes.UINT4: 4.61, Codes.INT4: 4.61, Codes.FP4: 2.93, Codes.UINT8: 73.9, Codes.INT8: 73.9, Codes.FP8: 1.0}
"""Standard deviation of what random codes stand for; codes of E4M3 are those of normal numbers, as some are NaN."""
_MIDDLES = {Codes.UINT4: 8.0, Codes.UINT8: 128.0}


def drawn(form: Form, generator: torch.Generator, dtype: torch.dtype, scale: float = 0.02) -> Form:
    """Return noise in the form and shape of `form`, whose tensors may be meta, on the generator's device.

    Plain matrices are in `dtype`. `scale` is about the standard deviation of the numbers.
    """
    device = generator.device
    match form:
        case Dense(matrix):
            noise = torch.randn(matrix.shape, generator=generator, device=device)
            return Dense(noise.mul_(scale).to(dtype))
        case Int8(matrix, scales, _, addend):
            levels = torch.randint(-127, 128, matrix.shape, generator=generator, device=device, dtype=torch.int8)
            return replace(
                form,
                matrix=levels,
                scales=torch.full(scales.shape, scale / 73.3, device=device),
                addend=None if addend is None else torch.zeros(addend.shape, dtype=torch.int32, device=device),
            )
        case Grouped(kind, codes, scales, shifts, _, order):
            step = scale / _SPREADS[kind]
            middle = -_MIDDLES.get(kind, 0.0) * torch.tensor(step)  # exactly what a whole zero point gives
            return replace(
                form,
                codes=_codes(kind, codes, generator),
                scales=torch.full(scales.shape, step, device=device),
                shifts=None if shifts is None else torch.full(shifts.shape, float(middle), device=device),
                order=None if order is None else torch.randperm(len(order), generator=generator, device=device),
            )


def _codes(kind: Codes, like: Tensor, generator: torch.Generator) -> Tensor:
    device = generator.device
    if kind is Codes.FP8:
        noise = torch.randn(like.shape, generator=generator, device=device)
        return noise.to(torch.float8_e4m3fn).view(torch.uint8)
    return torch.randint(0, 256, like.shape, generator=generator, device=device, dtype=torch.uint8)
