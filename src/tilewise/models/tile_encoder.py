"""TileEncoder: turns tiles into rows that the decoder reads, by tower, pixel shuffle, projector and Flash's router.

Source of the arithmetic: OpenGVLab/InternVL `modeling_internvl_chat.py`, of the tower `modeling_intern_vit.py`, and of
router and few rows `modeling_internvl_chat.py` of the Flash checkpoints (InternVL3.5 paper, arXiv 2508.18265, ViR).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tilewise.errors import InvalidConfig
from tilewise.layers import ColumnLinear, LayerNorm, ResidualStream, RMSNorm, RowLinear, norm_of
from tilewise.models.config import ROUTER_HEADS, ModelConfig, VisionConfig
from tilewise.parallel.mesh import Mesh
from tilewise.platforms.ops import Ops
from tilewise.weights.view import View

# Mean and deviation of ImageNet's pixels, with which every InternViT was trained.
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)
_NORM_EPS = 1e-5
_GATING_BLOCKS = 4


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
        flash = view.at("flash")
        self._router = TileRouter(flash, config.vision.hidden_size) if config.flash else None
        self._few_projector = Projector(flash.at("projector"), config, few=True) if config.flash else None
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
        if self._router is None or self._few_projector is None:
            yield EncodedTiles(rows)
            return
        few = self._few_projector(pixel_shuffle(features, 2 * block, version), self.ops)
        yield EncodedTiles(torch.cat((rows, few), dim=1), self._router(features, self.ops))


class Projector:
    """A layer norm, and linears with GELU between them, from shuffled patch features to the decoder's width.

    There are two linears for all rows of a tile (`mlp1`). With `few` there are three, and patches are shuffled twice as
    coarsely, for the few rows of a Flash model's easy tile (`mlp2`).
    """

    def __init__(self, view: View, config: ModelConfig, few: bool = False) -> None:
        hidden = config.decoder.hidden_size
        inputs = config.vision.hidden_size * (config.shuffle_block * (2 if few else 1)) ** 2
        widths = [2 * hidden, 2 * hidden] if few else [hidden]
        self._norm = LayerNorm(view.at("norm"), inputs, _NORM_EPS)
        # Projectors and router are whole on every rank, as the tower is by default.
        self._inner = [
            ColumnLinear(view, {f"linear_{n}": width}, before, True, Mesh())
            for n, (before, width) in enumerate(itertools.pairwise([inputs, *widths]), 1)
        ]
        self._out = RowLinear(view, f"linear_{len(widths) + 1}", widths[-1], hidden, True, Mesh())

    def __call__(self, x: Tensor, ops: Ops) -> Tensor:
        x = self._norm(x, ops)
        for linear in self._inner:
            x = linear.gelu(x, ops)
        return self._out(x, ops)


def pixel_shuffle(features: Tensor, block: int, version: Literal["v1", "v2"]) -> Tensor:
    """Turn space into depth: [T, side^2, C] -> [T, (side/block)^2, block^2 * C].

    The patches of a block are concatenated row by row. v2 numbers the blocks row by row; v1, of InternVL 1.x, column
    by column.
    """
    side = int(features.shape[1] ** 0.5)
    cells: Tensor = features.unflatten(1, (side // block, block, side // block, block))
    order = (0, 1, 3, 2, 4, 5) if version == "v2" else (0, 3, 1, 2, 4, 5)
    return cells.permute(*order).reshape(len(features), (side // block) ** 2, -1)


class VisionTower:
    """The vision tower. Nothing in it looks across tiles, which is why tiles can be cached one by one."""

    def __init__(self, view: View, config: VisionConfig, tile_size: int, mesh: Mesh = Mesh()) -> None:
        width, patch = config.hidden_size, config.patch_size
        embeddings = view.at("embeddings")
        self._patch = patch
        patches = embeddings.convolution("patch_embedding", width, 3, patch, patch)
        self._embed = embeddings.store([patches.matrix], patches.bias)
        self._class_token = embeddings.tensor("class_embedding", 1, 1, width)
        trained, side = config.image_size // patch, tile_size // patch
        positions = embeddings.tensor("position_embedding", 1, trained**2 + 1, width)
        self._positions = resize_positions(positions, trained, side)
        self._blocks = [VisionBlock(view.at("layers").at(n), config, mesh) for n in range(config.num_layers)]

    @property
    def device(self) -> torch.device:
        return self._class_token.device

    def steps(self, pixels: Tensor, mean: Tensor, std: Tensor, ops: Ops) -> Iterator[Tensor | None]:
        """Encode uint8 pixels [tiles, size, size, 3] -> features of the patches [tiles, patches, hidden], row by row.

        None is given after each layer but the last.
        """
        rows = ResidualStream(self.embed(pixels, mean, std, ops))
        for block in self._blocks[:-1]:
            block(rows, ops)
            yield None
        self._blocks[-1](rows, ops)
        yield rows.sum(ops)[:, 1:]

    def embed(self, pixels: Tensor, mean: Tensor, std: Tensor, ops: Ops) -> Tensor:
        """Embed pixels into what the first block reads [tiles, 1 + patches, hidden]."""
        x = ops.patchify(pixels, self._patch, mean, std).to(self._class_token.dtype)
        x = self._embed.apply(x, ops)
        return torch.cat((self._class_token.expand(len(x), -1, -1), x), dim=1) + self._positions


class VisionBlock:
    """A block of attention and MLP, each behind a norm and scaled by a learned vector before it is added.

    Ranks split heads and columns.
    """

    def __init__(self, view: View, config: VisionConfig, mesh: Mesh = Mesh()) -> None:
        width = config.hidden_size
        self._norm1 = norm_of(config.norm, view.at("norm1"), width, config.norm_eps)
        self._norm2 = norm_of(config.norm, view.at("norm2"), width, config.norm_eps)
        self._attention = VisionAttention(view.at("attn"), config, mesh)
        self._fc1 = ColumnLinear(view.at("mlp"), {"fc1": config.intermediate_size}, width, True, mesh)
        self._fc2 = RowLinear(view.at("mlp"), "fc2", config.intermediate_size, width, True, mesh)
        self._scale1 = view.tensor("ls1", width)
        self._scale2 = view.tensor("ls2", width)
        self._mesh = mesh

    def __call__(self, rows: ResidualStream, ops: Ops) -> None:
        """Add to rows [tiles, patches, hidden] what the block makes of them."""
        rows.add(self._scale1, self._mesh.sum(self._attention(rows.normed(self._norm1, ops), ops)))
        rows.add(self._scale2, self._mesh.sum(self._fc2(self._fc1.gelu(rows.normed(self._norm2, ops), ops), ops)))


class VisionAttention:
    """An attention of all patches to all patches. The 6B normalises queries and keys before they are cut into heads."""

    def __init__(self, view: View, config: VisionConfig, mesh: Mesh = Mesh()) -> None:
        width = config.hidden_size
        if mesh.size > 1 and (config.qk_norm or config.num_heads % mesh.size):
            fault = "norms its queries and keys over all heads" if config.qk_norm else f"has {config.num_heads} heads"
            raise InvalidConfig(
                f"mm_encoder_tp_mode=weights: this tower {fault}, which {mesh.size} ranks cannot share out: use data."
            )
        self._heads = config.num_heads // mesh.size
        parts = dict.fromkeys(("q_proj", "k_proj", "v_proj"), width)
        self._qkv = ColumnLinear(view, parts, width, config.qkv_bias, mesh)
        self._out = RowLinear(view, "proj", width, width, True, mesh)
        normed = ("q_norm", "k_norm") if config.qk_norm else ()
        self._norms = [RMSNorm(view.at(name), width, config.norm_eps) for name in normed]

    def __call__(self, x: Tensor, ops: Ops) -> Tensor:
        query, key, value = self._qkv(x, ops).chunk(3, dim=-1)
        if self._norms:
            query, key = self._norms[0](query, ops), self._norms[1](key, ops)
        query, key, value = (part.unflatten(-1, (self._heads, -1)) for part in (query, key, value))
        mixed = ops.dense_attention(query, key, value, query.shape[-1] ** -0.5)
        return self._out(mixed.flatten(2), ops)


def resize_positions(positions: Tensor, trained: int, side: int) -> Tensor:
    """Resize position embeddings [1, 1 + trained^2, C] to a grid of another side, bicubic as in the reference."""
    if trained == side or positions.is_meta:
        return positions
    grid = positions[:, 1:].reshape(1, trained, trained, -1).permute(0, 3, 1, 2).float()
    resized = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    patches = resized.flatten(2).transpose(1, 2).to(positions.dtype)
    return torch.cat((positions[:, :1], patches), dim=1)


class TileRouter:
    """The router: features [T, patches, C] -> float32 [T], the probability that a quarter of the rows is enough."""

    def __init__(self, view: View, width: int) -> None:
        self._pooling = CrossAttentionPooling(view.at("pooling"), width)
        self._blocks = [GatingBlock(view.at("gating").at(f"block{n + 1}"), width) for n in range(_GATING_BLOCKS)]
        gate = view.at("gating").at("gate")
        self._norm = LayerNorm(gate.at("norm"), width, _NORM_EPS)
        self._linear = ColumnLinear(gate, {"linear": 2}, width, True, Mesh())

    def __call__(self, features: Tensor, ops: Ops) -> Tensor:
        x = self._pooling(features, ops)
        for block in self._blocks:
            x = x + block(x, ops)
        logits = self._linear(self._norm(x, ops), ops)
        return logits.float().softmax(-1)[:, 0]


class CrossAttentionPooling:
    """A learned query gathers a tile's patches into one vector, in four rounds.

    The checkpoints hold four stages; the released forward runs the first once and the second three times.
    """

    def __init__(self, view: View, width: int) -> None:
        self._query = view.tensor("query_token", 1, width)
        self._first, self._second = PoolingStage(view, 1, width), PoolingStage(view, 2, width)

    def __call__(self, features: Tensor, ops: Ops) -> Tensor:
        """Pool features [T, patches, C] -> [T, C]."""
        x = self._query.expand(len(features), 1, -1)
        x = self._first(x, self._first.key_value(features, ops), ops)
        key_value = self._second.key_value(features, ops)
        for _ in range(3):
            x = self._second(x, key_value, ops)
        return x[:, 0]


class PoolingStage:
    """An attention of one query to all patches, and a norm; there is no residual."""

    def __init__(self, view: View, number: int, width: int) -> None:
        attention = view.at(f"attn{number}")
        self._query = ColumnLinear(attention, {"q_proj": width}, width, True, Mesh())
        self._key_value = ColumnLinear(attention, {"k_proj": width, "v_proj": width}, width, True, Mesh())
        self._out = RowLinear(attention, "out_proj", width, width, True, Mesh())
        self._norm = LayerNorm(view.at(f"norm{number}"), width, _NORM_EPS)

    def key_value(self, features: Tensor, ops: Ops) -> tuple[Tensor, Tensor]:
        key, value = self._key_value(features, ops).chunk(2, dim=-1)
        return _heads(key), _heads(value)

    def __call__(self, x: Tensor, key_value: tuple[Tensor, Tensor], ops: Ops) -> Tensor:
        query = _heads(self._query(x, ops))
        mixed = ops.dense_attention(query, *key_value, query.shape[-1] ** -0.5)
        return self._norm(self._out(mixed.flatten(2), ops), ops)


def _heads(x: Tensor) -> Tensor:
    heads: Tensor = x.unflatten(-1, (ROUTER_HEADS, -1))
    return heads


class GatingBlock:
    """A linear, GELU, a linear and a layer norm; the caller adds the result to what came in."""

    def __init__(self, view: View, width: int) -> None:
        self._linear_1 = ColumnLinear(view, {"linear_1": 4 * width}, width, True, Mesh())
        self._linear_2 = RowLinear(view, "linear_2", 4 * width, width, True, Mesh())
        self._norm = LayerNorm(view.at("norm"), width, _NORM_EPS)

    def __call__(self, x: Tensor, ops: Ops) -> Tensor:
        return self._norm(self._linear_2(self._linear_1.gelu(x, ops), ops), ops)
