"""Pixel shuffle and position embeddings against loops over their index formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tilewise.models.tile_encoder import pixel_shuffle, resize_positions


def shuffled_by_formula(features: Tensor, block: int, version: str) -> Tensor:
    """Patch (i, j), channel c goes to token (i//b, j//b), channel (i mod b)*b*C + (j mod b)*C + c; v1 transposes."""
    tiles, patches, channels = features.shape
    side = round(patches**0.5)
    out_side = side // block
    out = torch.full((tiles, out_side**2, block**2 * channels), float("nan"))
    for i in range(side):
        for j in range(side):
            row, column = i // block, j // block
            token = row * out_side + column if version == "v2" else column * out_side + row
            first = (i % block) * block * channels + (j % block) * channels
            out[:, token, first : first + channels] = features[:, i * side + j]
    return out


def numbered(side: int, channels: int = 3, tiles: int = 2) -> Tensor:
    return torch.arange(tiles * side * side * channels, dtype=torch.float32).view(tiles, side * side, channels)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(("side", "block"), [(8, 2), (8, 4), (6, 2), (2, 2), (4, 4), (32, 2)])
def test_shuffle_follows_the_formula(side: int, block: int, version: str) -> None:
    features = numbered(side)
    assert torch.equal(pixel_shuffle(features, block, version), shuffled_by_formula(features, block, version))


def test_v1_numbers_the_same_blocks_by_columns() -> None:
    features = numbered(8)
    v1, v2 = (pixel_shuffle(features, 2, version).unflatten(1, (4, 4)) for version in ("v1", "v2"))
    assert torch.equal(v1, v2.transpose(1, 2))
    assert not torch.equal(v1, v2)


def test_four_neighbours_stand_from_top_left_to_bottom_right() -> None:
    features = torch.arange(16.0).view(1, 16, 1)
    assert pixel_shuffle(features, 2, "v2")[0, 1].tolist() == [2, 3, 6, 7]


def test_block_of_one_changes_nothing() -> None:
    assert torch.equal(pixel_shuffle(numbered(4), 1, "v2"), numbered(4))


def test_positions_of_the_trained_grid_stay_as_they_are() -> None:
    positions = torch.randn(1, 17, 5)
    assert resize_positions(positions, 4, 4) is positions


@pytest.mark.parametrize("side", [2, 3, 6, 8])
def test_positions_are_resized_bicubically_and_the_class_token_is_kept(side: int) -> None:
    positions = torch.randn(1, 17, 5, generator=torch.Generator().manual_seed(side))
    resized = resize_positions(positions, 4, side)
    assert resized.shape == (1, side**2 + 1, 5)
    assert torch.equal(resized[:, 0], positions[:, 0])
    for channel in range(5):
        grid = positions[0, 1:, channel].view(1, 1, 4, 4)
        expected = F.interpolate(grid, (side, side), mode="bicubic", align_corners=False).flatten()
        assert torch.allclose(resized[0, 1:, channel], expected, atol=1e-6)


def test_resized_positions_keep_their_dtype() -> None:
    assert resize_positions(torch.randn(1, 17, 5).bfloat16(), 4, 6).dtype == torch.bfloat16
