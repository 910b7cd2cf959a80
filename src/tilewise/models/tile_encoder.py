"""TileEncoder: turns tiles into rows that the decoder reads, by tower, pixel shuffle, projector and Flash's router.

Source of the arithmetic: OpenGVLab/InternVL `modeling_internvl_chat.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tilewise.layers.linear import ColumnLinear, RowLinear
from tilewise.layers.norm import LayerNorm
from tilewise.models.config import ModelConfig
from tilewise.models.flash import FlashHead
from tilewise.models.vit import VisionTower
from tilewise.parallel.mesh import Mesh
from tilewise.platforms.base import Ops
from tilewise.weights.view import View

# Mean and deviation of ImageNet's pixels, with which every InternViT was trained.
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class EncodedTiles:
    """The rows that the decoder reads of tiles.

    `rows` [T, rows a page, hidden of the decoder]: all tokens of a tile and, in a Flash model, the few behind them;
    `scores` [T] float32: its router's probability that the few are enough.
    """

    rows: Tensor
    scores: Tensor | None = None


class TileEncoder:
    """The encoder of tiles, built by pulling weights from the whole model's view; ranks of a mesh share the tower's."""

    def __init__(self, view: View, config: ModelConfig, ops: Ops, mesh: Mesh = Mesh()) -> None:
        self.config = config
        self.ops = ops
        self.tower = VisionTower(view.at("vision"), config.vision, config.tile_size, mesh)
        self._projector = Projector(view.at("projector"), config)
        self._flash = FlashHead(view.at("flash"), config) if config.flash else None
        # float32 in any model, as the reference normalises: rounded to bfloat16 they would shift every pixel.
        device = self.tower.device
        self._mean, self._std = torch.tensor(PIXEL_MEAN, device=device), torch.tensor(PIXEL_STD, device=device)

    @property
    def num_steps(self) -> int:
        """Parts of about the same work into which `steps` cuts a batch: the layers of the tower."""
        return self.config.vision.num_layers

    def __call__(self, pixels: Tensor) -> EncodedTiles:
        """Encode uint8 tiles [T, size, size, 3] into rows for the prompt."""
        *_, found = self.steps(pixels)
        assert found is not None
        return found

    def steps(self, pixels: Tensor) -> Iterator[EncodedTiles | None]:
        """Encode tiles step by step, so that something else can be computed between; yield None until the last step."""
        for features in self.tower.steps(pixels, self._mean, self._std, self.ops):
            if features is None:
                yield None
        assert features is not None
        block, version = self.config.shuffle_block, self.config.shuffle_version
        rows = self._projector(pixel_shuffle(features, block, version), self.ops)
        if self._flash is None:
            yield EncodedTiles(rows)
            return
        few = self._flash.projector(pixel_shuffle(features, 2 * block, version), self.ops)
        yield EncodedTiles(torch.cat((rows, few), dim=1), self._flash.router(features, self.ops))


class Projector:
    """A layer norm, a linear, GELU and a linear, from shuffled patch features to the decoder's width (`mlp1`)."""

    def __init__(self, view: View, config: ModelConfig) -> None:
        inputs = config.vision.hidden_size * config.shuffle_block**2
        hidden = config.decoder.hidden_size
        self._norm = LayerNorm(view.at("norm"), inputs, eps=1e-5)
        self._linear_1 = ColumnLinear(view, {"linear_1": hidden}, inputs, True, Mesh())
        self._linear_2 = RowLinear(view, "linear_2", hidden, hidden, True, Mesh())

    def __call__(self, x: Tensor, ops: Ops) -> Tensor:
        return self._linear_2(self._linear_1.gelu(self._norm(x, ops), ops), ops)


def pixel_shuffle(features: Tensor, block: int, version: Literal["v1", "v2"]) -> Tensor:
    """Turn space into depth: [T, side^2, C] -> [T, (side/block)^2, block^2 * C].

    The patches of a block are concatenated row by row. v2 numbers the blocks row by row; v1, of InternVL 1.x, column
    by column.
    """
    side = int(features.shape[1] ** 0.5)
    cells: Tensor = features.unflatten(1, (side // block, block, side // block, block))
    order = (0, 1, 3, 2, 4, 5) if version == "v2" else (0, 3, 1, 2, 4, 5)
    return cells.permute(*order).reshape(len(features), (side // block) ** 2, -1)
