"""Numbers of 8 bits: rounded as torch rounds them, over the whole range and between any two neighbours."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tilewise.platforms.cuda.kernels.rounding import e4m3_halves, e4m3_of, int8_of

BLOCK = 4096


@triton.jit
def _int8(numbers, codes, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(codes + place, int8_of(tl.load(numbers + place)))


@triton.jit
def _e4m3(numbers, codes, back, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    code = e4m3_of(tl.load(numbers + place))
    tl.store(codes + place, code)
    tl.store(back + place, e4m3_halves(code).to(tl.float32) * 256)


def between(exact: Tensor) -> Tensor:
    """Numbers in ascending order, what lies halfway between two of them, and float32's neighbours of that."""
    halfway = (exact[1:] + exact[:-1]) / 2
    numbers = torch.cat((exact, halfway, halfway.nextafter(exact[1:]), halfway.nextafter(exact[:-1])))
    return torch.cat((numbers, numbers.new_zeros(BLOCK - len(numbers))))


def test_int8(device: torch.device) -> None:
    numbers = between(torch.arange(-128.0, 128.0)).to(device)
    codes = torch.empty(BLOCK, dtype=torch.int8, device=device)
    _int8[(1,)](numbers, codes, BLOCK=BLOCK)
    assert torch.equal(codes, numbers.round().to(torch.int8))


def test_e4m3(device: torch.device) -> None:
    exact = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    numbers = torch.cat((between(exact), -between(exact)))[: 2 * BLOCK].view(2, BLOCK).to(device)
    for row in numbers:
        codes, back = torch.empty(BLOCK, dtype=torch.uint8, device=device), torch.empty_like(row)
        _e4m3[(1,)](row, codes, back, BLOCK=BLOCK)
        expected = row.to(torch.float8_e4m3fn)
        assert torch.equal(codes, expected.view(torch.uint8))
        assert torch.equal(back, expected.float())
