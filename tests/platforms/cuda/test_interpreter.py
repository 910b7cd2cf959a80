"""Repairs of the interpreter: a conversion between floats gives what torch gives."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn)


@triton.jit
def _convert(given, converted, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(converted + place, tl.load(given + place).to(converted.dtype.element_ty))


@pytest.mark.parametrize("wanted", DTYPES, ids=str)
@pytest.mark.parametrize("given", DTYPES, ids=str)
def test_conversions(given: torch.dtype, wanted: torch.dtype, device: torch.device) -> None:
    numbers = torch.randn(1024) * torch.linspace(-12, 7, 1024).exp2()
    # Halfway between two neighbours, and just below a power of two.
    numbers[:6] = torch.tensor((1 + 2**-8, 1 + 3 * 2**-8, 1.9999, 1.0625, 1.1875, 15.9))
    x = numbers.to(given).to(device)
    converted = torch.empty(1024, dtype=wanted, device=device)
    _convert[(1,)](x, converted, BLOCK=1024)
    assert torch.equal(converted.float(), x.float().to(wanted).float())
