"""The parts of a Flash checkpoint beyond InternVL: a router that scores tiles, a projector to a quarter of the rows.

Source of the arithmetic: `modeling_internvl_chat.py` of the checkpoints (InternVL3.5 paper, arXiv 2508.18265, ViR).
"""

from __future__ import annotations

from torch import Tensor

from tilewise.errors import InvalidCheckpoint
from tilewise.layers import ColumnLinear, LayerNorm, RowLinear
from tilewise.models.config import ModelConfig
from tilewise.parallel.mesh import Mesh
from tilewise.platforms.ops import Ops
from tilewise.step import FlashRule
from tilewise.weights.folder import Section
from tilewise.weights.view import View

_EPS = 1e-5
_POOLING_HEADS = 16
_GATING_BLOCKS = 4
# Router and projector are whole on every rank, as the tower is by default.
_WHOLE = Mesh()


class FlashHead:
    """The router, and the projector for tiles of few rows; both read the features of a tile's patches."""

    def __init__(self, view: View, config: ModelConfig) -> None:
        self.router = TileRouter(view, config.vision.hidden_size)
        self.projector = FewRowsProjector(view.at("projector"), config)


class TileRouter:
    """The router: features [T, patches, C] -> float32 [T], the probability that a quarter of the rows is enough."""

    def __init__(self, view: View, width: int) -> None:
        self._pooling = CrossAttentionPooling(view.at("pooling"), width)
        self._blocks = [GatingBlock(view.at("gating").at(f"block{n + 1}"), width) for n in range(_GATING_BLOCKS)]
        gate = view.at("gating").at("gate")
        self._norm = LayerNorm(gate.at("norm"), width, _EPS)
        self._linear = ColumnLinear(gate, {"linear": 2}, width, True, _WHOLE)

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
        self._query = ColumnLinear(attention, {"q_proj": width}, width, True, _WHOLE)
        self._key_value = ColumnLinear(attention, {"k_proj": width, "v_proj": width}, width, True, _WHOLE)
        self._out = RowLinear(attention, "out_proj", width, width, True, _WHOLE)
        self._norm = LayerNorm(view.at(f"norm{number}"), width, _EPS)

    def key_value(self, features: Tensor, ops: Ops) -> tuple[Tensor, Tensor]:
        key, value = self._key_value(features, ops).chunk(2, dim=-1)
        return _heads(key), _heads(value)

    def __call__(self, x: Tensor, key_value: tuple[Tensor, Tensor], ops: Ops) -> Tensor:
        query = _heads(self._query(x, ops))
        mixed = ops.dense_attention(query, *key_value, query.shape[-1] ** -0.5)
        return self._norm(self._out(mixed.flatten(2), ops), ops)


def _heads(x: Tensor) -> Tensor:
    heads: Tensor = x.unflatten(-1, (_POOLING_HEADS, -1))
    return heads


class GatingBlock:
    """A linear, GELU, a linear and a layer norm; the caller adds the result to what came in."""

    def __init__(self, view: View, width: int) -> None:
        self._linear_1 = ColumnLinear(view, {"linear_1": 4 * width}, width, True, _WHOLE)
        self._linear_2 = RowLinear(view, "linear_2", 4 * width, width, True, _WHOLE)
        self._norm = LayerNorm(view.at("norm"), width, _EPS)

    def __call__(self, x: Tensor, ops: Ops) -> Tensor:
        return self._norm(self._linear_2(self._linear_1.gelu(x, ops), ops), ops)


class FewRowsProjector:
    """A layer norm and three linears with GELU between them (`mlp2`), to the rows of an easy tile."""

    def __init__(self, view: View, config: ModelConfig) -> None:
        inputs = config.vision.hidden_size * (2 * config.shuffle_block) ** 2
        hidden = config.decoder.hidden_size
        self._norm = LayerNorm(view.at("norm"), inputs, _EPS)
        self._linear_1 = ColumnLinear(view, {"linear_1": 2 * hidden}, inputs, True, _WHOLE)
        self._linear_2 = ColumnLinear(view, {"linear_2": 2 * hidden}, 2 * hidden, True, _WHOLE)
        self._linear_3 = RowLinear(view, "linear_3", 2 * hidden, hidden, True, _WHOLE)

    def __call__(self, x: Tensor, ops: Ops) -> Tensor:
        x = self._linear_1.gelu(self._norm(x, ops), ops)
        return self._linear_3(self._linear_2.gelu(x, ops), ops)


def flash_rule(config: Section, model: ModelConfig) -> FlashRule:
    """Read the rule of a config with `flash_mode`; raise InvalidCheckpoint where it makes no sense.

    Easy tiles are shuffled twice as coarsely, and two thresholds say which are easy.
    """
    side, block = model.tile_size // model.vision.patch_size, 2 * model.shuffle_block
    if side % block or model.vision.hidden_size % _POOLING_HEADS:
        raise InvalidCheckpoint(
            f"{config.where}: flash_mode needs tiles that divide into blocks of {block}x{block} patches, found "
            f"{side}x{side}, and a tower whose width {model.vision.hidden_size} divides by {_POOLING_HEADS}."
        )
    relative, absolute = (_threshold(config, f"flash_{kind}_threshold") for kind in ("relative", "absolute"))
    return FlashRule((side // block) ** 2, relative, absolute)


def _threshold(config: Section, key: str) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise InvalidCheckpoint(
            f"{config.where}: with flash_mode {key} must be a number from 0 to 1, found {value!r:.80}: take it from "
            "the config.json that the checkpoint was published with, or run without its router (--no-flash-router)."
        )
    return float(value)
