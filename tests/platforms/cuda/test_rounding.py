"""Rounding of rows to 8 bits against the formulas in plain torch: the same numbers, bit by bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tilewise.platforms.cuda.kernels import rounding
from tilewise.platforms.forms import StaticRows
from tilewise.platforms.kv_cache import quantise
from tilewise.platforms.weights import quantise_rows, rounded_rows

FP8 = torch.float8_e4m3fn
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
shapes = pytest.mark.parametrize("shape", [(1, 2), (9, 34), (2, 3, 130), (3, 1100), (1, 257), (0, 8)], ids=str)


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


@dtypes
@shapes
def test_rows_to_int8(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    x = numbers(shape, dtype, device)
    same(rounding.int8_rows(x), quantise_rows(x.flatten(0, -2)))


@dtypes
@shapes
def test_rows_to_fp8(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    x = numbers(shape, dtype, device)
    codes, scales = quantise(x.flatten(0, -2), FP8)
    same(rounding.fp8_rows(x), (codes, scales[:, None]))


@dtypes
@shapes
def test_groups_to_fp8(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    x = numbers(shape, dtype, device)
    groups = [quantise(group, FP8) for group in x.flatten(0, -2).split(rounding.GROUP, dim=-1)]
    codes = torch.cat([codes.float() for codes, _ in groups], dim=-1).to(FP8)
    same(rounding.fp8_groups(x), (codes, torch.stack([scales for _, scales in groups], dim=-1)))


@dtypes
@shapes
@pytest.mark.parametrize("offset", [-128, 0, 1, 127])
def test_rows_to_int8_by_a_fixed_scale(
    shape: tuple[int, ...], offset: int, dtype: torch.dtype, device: torch.device
) -> None:
    x, static = numbers(shape, dtype, device), StaticRows(0.037, offset)
    assert torch.equal(rounding.int8_rows_static(x, static), rounded_rows(x.flatten(0, -2), static))


def test_rows_within_wider_ones(device: torch.device) -> None:
    x = numbers((2, 5, 48), torch.bfloat16, device)[..., 8:24]
    same(rounding.int8_rows(x), quantise_rows(x.flatten(0, -2)))
    assert torch.equal(
        rounding.int8_rows_static(x, StaticRows(0.1, 3)), rounded_rows(x.flatten(0, -2), StaticRows(0.1, 3))
    )
