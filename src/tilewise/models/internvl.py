"""The whole InternVL: the encoder of tiles, and the decoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tilewise.models.config import ModelConfig
from tilewise.models.decoder import BlockFactory, Decoder, ModelBatch
from tilewise.models.tile_encoder import EncodedTiles, TileEncoder
from tilewise.parallel.mesh import Mesh
from tilewise.platforms.kv_cache import LayerCache
from tilewise.platforms.ops import Ops
from tilewise.weights.view import View


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

    def encode(self, pixels: Tensor) -> EncodedTiles:
        """Encode uint8 tiles [T, size, size, 3] into rows for the prompt; only in the first stage."""
        assert self.encoder is not None
        return self.encoder(pixels)

    def forward(self, batch: ModelBatch, caches: Sequence[LayerCache], tile_pool: Tensor) -> Tensor:
        """Return logits [R, vocabulary] of the batch's `logits_rows`; tile rows come from the pool [pages, rows, H]."""
        return self.logits(self.hidden(batch, caches, tile_pool)[batch.logits_rows])

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
