"""Kernels of rows and of single numbers against the reference ops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tilewise.platforms.cuda.kernels import rows
from tilewise.platforms.ops import Ops

REFERENCE = Ops()
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Relative; of 16 bits two of the last places."""
EPS = 1e-6
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
scaled = pytest.mark.parametrize("with_scale", [False, True], ids=["plain", "scaled"])
shapes = pytest.mark.parametrize("shape", [(1, 2), (7, 64), (3, 34), (2, 5, 1100), (0, 8)], ids=str)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(found: Tensor, expected: Tensor, dtype: torch.dtype, unequal: float = 0.02) -> None:
    """What is rounded at the same points in between is unequal only where float32 fell to either side of a half."""
    assert found.dtype == dtype
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] / 10)
    if dtype.itemsize == 2:
        assert (found != expected).sum() <= unequal * found.numel()


@dtypes
@shapes
def test_norms(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    x = 3 * noise(*shape) + 1
    x[-1:] *= 3e-4  # as small as eps
    x = x.to(device, dtype)
    weight, bias = (noise(shape[-1], seed=seed).to(device, dtype) for seed in (1, 2))
    close(rows.rms_norm(x, weight, EPS), REFERENCE.rms_norm(x, weight, EPS), dtype)
    close(rows.layer_norm(x, weight, bias, EPS), REFERENCE.layer_norm(x, weight, bias, EPS), dtype)


@dtypes
@scaled
@shapes
def test_norms_of_sums(shape: tuple[int, ...], with_scale: bool, dtype: torch.dtype, device: torch.device) -> None:
    x, y = (noise(*shape, seed=seed).to(device, dtype) for seed in (0, 1))
    weight, bias, scale = (noise(shape[-1], seed=seed).to(device, dtype) for seed in (2, 3, 4))
    scale = scale if with_scale else None
    total = REFERENCE.add_scaled(x, scale, y)
    assert torch.equal(rows.add_scaled(x, scale, y), total)
    found, normed = rows.add_rms_norm(x, scale, y, weight, EPS)
    assert torch.equal(found, total)
    close(normed, REFERENCE.rms_norm(total, weight, EPS), dtype)
    found, normed = rows.add_layer_norm(x, scale, y, weight, bias, EPS)
    assert torch.equal(found, total)
    close(normed, REFERENCE.layer_norm(total, weight, bias, EPS), dtype)


@dtypes
@pytest.mark.parametrize(("tokens", "heads", "width"), [(1, 3, 16), (5, 1, 64), (9, 14, 64), (3, 4, 128)])
def test_norms_of_heads_within_wider_rows(
    tokens: int, heads: int, width: int, dtype: torch.dtype, device: torch.device
) -> None:
    qkv = noise(tokens, (heads + 4) * width).to(device, dtype)
    _, query, _ = qkv.split((2 * width, heads * width, 2 * width), dim=-1)
    x, weight = query.unflatten(-1, (heads, width)), noise(width, seed=1).to(device, dtype)
    close(rows.rms_norm(x, weight, EPS), REFERENCE.rms_norm(x.contiguous(), weight, EPS), dtype)


def test_norms_of_queries_of_several_tiles(device: torch.device) -> None:
    qkv, weight = noise(2, 5, 3 * 48).to(device), noise(48, seed=1).to(device)
    for x in qkv.chunk(3, dim=-1):
        close(rows.rms_norm(x, weight, EPS), REFERENCE.rms_norm(x.contiguous(), weight, EPS), torch.float32)


def test_norms_of_what_has_too_many_strides_or_none(device: torch.device) -> None:
    weight = noise(6, seed=1).to(device)
    for x in (noise(4, 3, 2, 6).transpose(0, 1).transpose(1, 2), noise(6, 5).T, noise(1, 1, 6)):
        x = x.to(device)
        close(rows.rms_norm(x, weight, EPS), REFERENCE.rms_norm(x.contiguous(), weight, EPS), torch.float32)


@dtypes
@shapes
def test_gelu(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    x = (2 * noise(*shape)).to(device, dtype)
    # Far below zero, where 1 + erf(x) has lost most places, float16 still keeps what is left.
    close(rows.gelu(x), REFERENCE.gelu(x), dtype, unequal=0.1)


@dtypes
@shapes
def test_silu_mul(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    x = noise(*shape).to(device, dtype)
    close(rows.silu_mul(x), REFERENCE.silu_mul(x), dtype)


@dtypes
@pytest.mark.parametrize("width", [6, 1030])
def test_scatter_rows(width: int, dtype: torch.dtype, device: torch.device) -> None:
    source, target = noise(5, width).to(device, dtype), noise(7, width, seed=1).to(device, dtype)
    expected = target.clone()
    for to, come in (([], []), ([6], [4]), ([0, 5, 2], [3, 0, 3])):
        places, chosen = (torch.tensor(some, dtype=torch.int64, device=device) for some in (to, come))
        rows.scatter_rows(target, places, source, chosen)
        REFERENCE.scatter_rows(expected, places, source, chosen)
        assert torch.equal(target, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("tiles", "height", "width", "patch"), [(1, 2, 2, 2), (2, 28, 42, 14), (3, 8, 4, 4)])
def test_patchify(tiles: int, height: int, width: int, patch: int, dtype: torch.dtype, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (tiles, height, width, 3), generator=generator, dtype=torch.uint8)
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    found = rows.patchify(pixels.to(device), patch, mean.to(device), std.to(device), dtype)
    # Of the CPU: on a GPU torch multiplies by the reciprocal of 255.
    expected = REFERENCE.patchify(pixels, patch, mean, std).to(dtype)
    assert found.dtype == dtype
    assert torch.equal(found.cpu(), expected)


def test_patches_of_no_tiles(device: torch.device) -> None:
    pixels, vector = torch.empty(0, 8, 4, 3, dtype=torch.uint8, device=device), torch.ones(3, device=device)
    assert rows.patchify(pixels, 2, vector, vector).shape == (0, 8, 12)
