"""Rounding of rows to 8 bits against the formulas in plain torch: the same numbers, bit by bit."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from tilewise.platforms.cuda.kernels import rounding
from tilewise.platforms.cuda.kernels.rounding import e4m3_halves, e4m3_of, int8_of
from tilewise.platforms.forms import StaticRows
from tilewise.platforms.kv_cache import quantise
from tilewise.platforms.weights import quantise_rows, rounded_rows

FP8 = torch.float8_e4m3fn

SHAPES = [(1, 2), (9, 34), (2, 3, 130), (3, 1100), (1, 257), (0, 8)]
rows = pytest.mark.parametrize(
    ("shape", "dtype"),
    [*((shape, torch.bfloat16) for shape in SHAPES), *(((9, 34), dtype) for dtype in (torch.float32, torch.float16))],
    ids=str,
)
"""All shapes, and all dtypes that a kernel reads; what it computes with is float32 whatever came."""


def numbers(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Rows of different sizes, one of them zeros."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).flatten(0, -2)
    x = x * torch.arange(len(x)).exp2()[:, None]
    x[1::3] = 0
    return x.view(shape).to(device, dtype)


def same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one.float(), other.float())


@rows
def test_rows_to_int8(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    x = numbers(shape, dtype, device)
    same(rounding.int8_rows(x), quantise_rows(x.flatten(0, -2)))


@rows
def test_rows_to_fp8(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    x = numbers(shape, dtype, device)
    codes, scales = quantise(x.flatten(0, -2), FP8)
    same(rounding.fp8_rows(x), (codes, scales[:, None]))


@rows
def test_groups_to_fp8(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    x = numbers(shape, dtype, device)
    groups = [quantise(group, FP8) for group in x.flatten(0, -2).split(rounding.GROUP, dim=-1)]
    codes = torch.cat([codes.float() for codes, _ in groups], dim=-1).to(FP8)
    same(rounding.fp8_groups(x), (codes, torch.stack([scales for _, scales in groups], dim=-1)))


@rows
def test_rows_to_int8_by_a_fixed_scale(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    x = numbers(shape, dtype, device)
    for static in (StaticRows(0.037, offset) for offset in (-128, 0, 1, 127)):
        assert torch.equal(rounding.int8_rows_static(x, static), rounded_rows(x.flatten(0, -2), static)), static


def test_rows_within_wider_ones(device: torch.device) -> None:
    x = numbers((2, 5, 48), torch.bfloat16, device)[..., 8:24]
    same(rounding.int8_rows(x), quantise_rows(x.flatten(0, -2)))
    assert torch.equal(
        rounding.int8_rows_static(x, StaticRows(0.1, 3)), rounded_rows(x.flatten(0, -2), StaticRows(0.1, 3))
    )


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


def test_int8_of_any_number(device: torch.device) -> None:
    numbers = between(torch.arange(-128.0, 128.0)).to(device)
    codes = torch.empty(BLOCK, dtype=torch.int8, device=device)
    _int8[(1,)](numbers, codes, BLOCK=BLOCK)
    assert torch.equal(codes, numbers.round().to(torch.int8))


def test_e4m3_of_any_number(device: torch.device) -> None:
    exact = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    numbers = torch.cat((between(exact), -between(exact)))[: 2 * BLOCK].view(2, BLOCK).to(device)
    for row in numbers:
        codes, back = torch.empty(BLOCK, dtype=torch.uint8, device=device), torch.empty_like(row)
        _e4m3[(1,)](row, codes, back, BLOCK=BLOCK)
        expected = row.to(torch.float8_e4m3fn)
        assert torch.equal(codes, expected.view(torch.uint8))
        assert torch.equal(back, expected.float())
