"""Patches of tiles against the reference op."""

from __future__ import annotations

import pytest
import torch

from tilewise.platforms.cuda.kernels.patches import patchify
from tilewise.platforms.reference import ReferenceOps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("tiles", "height", "width", "patch"), [(1, 2, 2, 2), (2, 28, 42, 14), (3, 8, 4, 4)])
def test_patchify(tiles: int, height: int, width: int, patch: int, dtype: torch.dtype, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (tiles, height, width, 3), generator=generator, dtype=torch.uint8)
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    found = patchify(pixels.to(device), patch, mean.to(device), std.to(device), dtype)
    # Of the CPU: on a GPU torch multiplies by the reciprocal of 255.
    expected = ReferenceOps().patchify(pixels, patch, mean, std).to(dtype)
    assert found.dtype == dtype
    assert torch.equal(found.cpu(), expected)


def test_no_tiles(device: torch.device) -> None:
    pixels, vector = torch.empty(0, 8, 4, 3, dtype=torch.uint8, device=device), torch.ones(3, device=device)
    assert patchify(pixels, 2, vector, vector).shape == (0, 8, 12)
