"""InternVL: the whole model, encoder of tiles and decoder. Decoder: one Llama-shaped transformer as data tells it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tilewise.layers import ColumnLinear, ResidualStream, RMSNorm, RopeTable, RowLinear
from tilewise.models.config import DecoderConfig, ModelConfig
from tilewise.models.tile_encoder import TileEncoder
from tilewise.parallel.mesh import Mesh
from tilewise.platforms.forms import Dense
from tilewise.platforms.kv_cache import LayerCache, PagedLayout
from tilewise.platforms.ops import HeadNorms, Ops
from tilewise.platforms.weights import Use, Weight
from tilewise.weights.view import View


@dataclass(frozen=True, slots=True)
class ModelBatch:
    """The N rows of a step: the tokens of S sequences, and padding where rows have fixed places."""

    token_ids: Tensor
    """int64 [N]."""
    positions: Tensor
    """int64 [N], positions in their sequences."""
    layout: PagedLayout
    image_rows: Tensor
    """int64 [I], rows of the batch that are image tokens."""
    tile_rows: Tensor
    """int64 [I], the row of the tile pool, seen as [pages * rows a page, hidden], that each image token takes."""
    logits_rows: Tensor
    """int64 [R], rows after which a token is chosen."""


@dataclass(frozen=True, slots=True)
class ForwardContext:
    """The arguments that all blocks of one forward pass share.

    Ordinarily all ranks of a stage have all rows between products. Where rows are spread, each has a share of them, so
    that norms and sums are computed once and not by every rank (sequence parallelism: Korthikanti et al. 2022).
    """

    cos: Tensor
    sin: Tensor
    layout: PagedLayout
    ops: Ops
    mesh: Mesh = Mesh()
    spread: bool = False

    def own(self, x: Tensor) -> Tensor:
        """Take those of all rows [N, hidden] that this rank has between products; zeros fill the last rank's share."""
        return self.mesh.own_rows(x) if self.spread else x

    def all(self, x: Tensor) -> Tensor:
        """Gather all rows, which a product reads, from the ranks that have them: the inverse of `own`."""
        return self.mesh.all_rows(x, len(self.cos)) if self.spread else x

    def sum(self, x: Tensor) -> Tensor:
        """Sum over ranks what each has of a product [N, hidden]; return the rows that this rank has."""
        return self.mesh.sum_own_rows(x) if self.spread else self.mesh.sum(x)


DecoderLayer = Callable[[ResidualStream, LayerCache, ForwardContext], None]
"""A function that adds to rows [N, hidden] what a layer makes of them, over this layer's keys and values."""

BlockFactory = Callable[[View, DecoderConfig, int, Mesh], DecoderLayer]
"""A function (view of the layer, config, layer number, mesh) -> block, of the backbone's own where blocks differ."""

MLP = Callable[[Tensor, Ops], Tensor]
"""A function from [N, hidden] to this rank's part of the sum, of the same shape."""


class InternVL:
    """A model, built by pulling weights from `view`; `context` is the longest sequence it will see, in tokens.

    A rank in a pipeline has the layers of its stage; the first stage has the encoder of tiles and the embedding, the
    last one the head.
    """

    def __init__(
        self,
        view: View,
        config: ModelConfig,
        block: BlockFactory,
        mesh: Mesh,
        ops: Ops,
        context: int,
        encodes: bool = True,
    ) -> None:
        """Build the model, without the encoder of tiles unless it `encodes`: other processes do it then."""
        self.config = config
        self.ops = ops
        self._mesh = mesh
        self.encoder = TileEncoder(view, config, ops, mesh.tower) if encodes and mesh.is_first_stage else None
        self.decoder = Decoder(view.at("language"), config.decoder, block, mesh, context)

    def hidden(self, batch: ModelBatch, caches: Sequence[LayerCache], tile_pool: Tensor) -> Tensor:
        """Return the decoder's last hidden state of every token of the batch [N, H].

        In a pipeline, it is that of this stage's last layer, which is sent to the next stage, too.
        """
        decoder, pipeline = self.decoder, self._mesh.pipeline
        if self._mesh.is_first_stage:
            x = decoder.embed(batch.token_ids)
            if len(batch.image_rows):
                self.ops.scatter_rows(x, batch.image_rows, tile_pool.flatten(0, 1), batch.tile_rows)
        else:
            assert pipeline is not None
            shape = (len(batch.token_ids), self.config.decoder.hidden_size)
            x = pipeline.receive(batch.token_ids.new_empty(shape, dtype=decoder.dtype))
        x = decoder(x, batch.positions, caches, batch.layout, self.ops)
        if pipeline is not None and not self._mesh.is_last_stage:
            pipeline.send(x)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [R, vocabulary] of hidden states [R, H]."""
        return self.decoder.logits(hidden, self.ops)


class Decoder:
    """The embedding, blocks, final norm and output head."""

    def __init__(self, view: View, config: DecoderConfig, block: BlockFactory, mesh: Mesh, context: int) -> None:
        model, vocabulary = view.at("model"), mesh.rows(config.vocab_size)
        self._mesh, self._vocabulary, self._vocab_size = mesh, vocabulary, config.vocab_size
        # Configs are wrong about tying often enough: the head is the embedding exactly when no head is stored.
        tied = not view.has("lm_head.weight")
        embeds = mesh.is_first_stage or (tied and mesh.is_last_stage)
        self._embedding = (
            model.tensor("embed_tokens.weight", config.vocab_size, config.hidden_size, share=vocabulary)
            if embeds
            else None
        )
        self._head = self._stored_head(view, config, tied) if mesh.is_last_stage else None
        layers = mesh.layers(config.num_layers)
        self._blocks = [block(model.at("layers").at(n), config, n, mesh) for n in layers]
        self._norm = RMSNorm(model.at("norm"), config.hidden_size, config.norm_eps)
        self._rope = RopeTable(config.rope, config.head_dim, context, self.device)
        self.num_kv_heads = mesh.heads(config.num_heads, config.num_kv_heads)[1].length
        """Number of heads whose keys and values this rank keeps."""
        self.num_layers = len(layers)
        """Number of layers that this rank has."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of hidden states, and of keys and values that are kept as they are computed."""
        return self._norm.weight.dtype

    @property
    def device(self) -> torch.device:
        return self._norm.weight.device

    def _stored_head(self, view: View, config: DecoderConfig, tied: bool) -> Weight:
        if tied:
            assert self._embedding is not None
            use = Use.SHARED if self._mesh.is_first_stage else Use.ALONE
            return view.store([Dense(self._embedding)], None, use)
        head = view.linear("lm_head", config.vocab_size, config.hidden_size, output_share=self._vocabulary)
        return view.store([head.matrix], head.bias)

    def embed(self, token_ids: Tensor) -> Tensor:
        """Embed token ids [N] -> [N, hidden]; only in the first stage."""
        assert self._embedding is not None
        if self._mesh.size == 1:
            rows: Tensor = torch.index_select(self._embedding, 0, token_ids)
            return rows
        own = token_ids - self._vocabulary.start
        here = (own >= 0) & (own < self._vocabulary.length)
        rows = torch.index_select(self._embedding, 0, own.where(here, 0))
        return self._mesh.sum(rows.masked_fill(~here[:, None], 0))

    def __call__(
        self, x: Tensor, positions: Tensor, caches: Sequence[LayerCache], layout: PagedLayout, ops: Ops
    ) -> Tensor:
        """Run embeddings [N, hidden], or what the stage before made of them, through this stage's blocks.

        Keys and values go into the caches.
        """
        at = ForwardContext(*self._rope.at(positions), layout, ops, self._mesh, self._mesh.spreads(len(x)))
        rows = ResidualStream(at.own(x))
        for block, cache in zip(self._blocks, caches, strict=True):
            block(rows, cache, at)
        return at.all(rows.sum(ops))

    def logits(self, x: Tensor, ops: Ops) -> Tensor:
        """Return logits [R, vocabulary] of hidden states [R, hidden], the same on all ranks of the last stage."""
        assert self._head is not None
        return self._mesh.gathered(self._head.apply(self._norm(x, ops), ops), self._vocab_size)


def plain_block(view: View, config: DecoderConfig, layer: int, mesh: Mesh) -> DecoderLayer:
    """Build the block that most backbones are made of."""
    attention = Attention(view.at("self_attn"), config, mesh)
    return DecoderBlock(view, config, attention, GatedMLP(view.at("mlp"), config, mesh))


class DecoderBlock:
    """A block of attention and MLP, each behind a norm."""

    def __init__(self, view: View, config: DecoderConfig, attention: Attention, mlp: MLP) -> None:
        self._norm1 = RMSNorm(view.at("input_layernorm"), config.hidden_size, config.norm_eps)
        self._norm2 = RMSNorm(view.at("post_attention_layernorm"), config.hidden_size, config.norm_eps)
        self._attention = attention
        self._mlp = mlp

    def __call__(self, rows: ResidualStream, cache: LayerCache, at: ForwardContext) -> None:
        rows.add(None, at.sum(self._attention(at.all(rows.normed(self._norm1, at.ops)), cache, at)))
        rows.add(None, at.sum(self._mlp(at.all(rows.normed(self._norm2, at.ops)), at.ops)))


class Attention:
    """A grouped-query attention over the paged cache; ranks split the heads, and each gives its part of the sum.

    `window` is how many tokens back a query sees, itself included; None = all. With `sinks`, each head has a learned
    logit that takes part in the softmax and brings no value (gpt-oss).
    """

    def __init__(
        self, view: View, config: DecoderConfig, mesh: Mesh, window: int | None = None, sinks: bool = False
    ) -> None:
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        heads, kept = mesh.heads(config.num_heads, config.num_kv_heads)
        self._window = window
        self._sinks = view.tensor("sinks", config.num_heads, share=heads) if sinks else None
        self._head_dim = config.head_dim
        self._qkv = ColumnLinear(
            view,
            {"q_proj": queries, "k_proj": keys, "v_proj": keys},
            config.hidden_size,
            config.qkv_bias,
            mesh,
            {"k_proj": kept.of(config.head_dim), "v_proj": kept.of(config.head_dim)},
        )
        self._out = RowLinear(view, "o_proj", queries, config.hidden_size, config.output_bias, mesh)
        self._norms = None
        if config.head_norm:
            query, key = (view.at(name).tensor("weight", config.head_dim) for name in ("q_norm", "k_norm"))
            self._norms = HeadNorms(query, key, config.norm_eps)

    def __call__(self, x: Tensor, cache: LayerCache, at: ForwardContext) -> Tensor:
        split = self._qkv(x, at.ops).split(self._qkv.sizes, dim=-1)
        query, key, value = (part.unflatten(-1, (-1, self._head_dim)) for part in split)
        query = at.ops.rope_into_cache(query, key, value, at.cos, at.sin, cache, at.layout, self._norms)
        scale = self._head_dim**-0.5
        mixed = at.ops.paged_attention(query, cache, at.layout, scale, self._window, self._sinks)
        return self._out(mixed.flatten(1), at.ops)


class GatedMLP:
    """An MLP: down(silu(gate(x)) * up(x))."""

    def __init__(self, view: View, config: DecoderConfig, mesh: Mesh) -> None:
        inner, hidden = config.intermediate_size, config.hidden_size
        self._gate_up = ColumnLinear(view, {"gate_proj": inner, "up_proj": inner}, hidden, False, mesh)
        self._down = RowLinear(view, "down_proj", inner, hidden, False, mesh)

    def __call__(self, x: Tensor, ops: Ops) -> Tensor:
        return self._down(ops.silu_mul(self._gate_up(x, ops)), ops)
