"""TileTower: the part of a checkpoint that encodes tiles, without its decoder."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilewise.config import EngineConfig
from tilewise.environment import Environment
from tilewise.models.load import Architecture
from tilewise.models.tile_encoder import TileEncoder
from tilewise.plan import Resolved, why_batch_invariant
from tilewise.platforms import current_platform
from tilewise.platforms.base import Platform
from tilewise.runner.build import chosen_dtype, load_encoder, tile_folder, tile_store
from tilewise.runner.finite import broken_rows
from tilewise.runner.tile_store import EncodedTileStore, StoredTileRows
from tilewise.step import Limits
from tilewise.types import Tile
from tilewise.weights.checkpoint import Checkpoint
from tilewise.weights.quantization import check_method

logger = logging.getLogger("tilewise")


class TileTower:
    """A tower that encodes tiles in batches of `sizes`. A `store` gives the tiles that it has, and gets the others."""

    def __init__(
        self,
        encoder: TileEncoder,
        sizes: Sequence[int],
        device: torch.device,
        store: EncodedTileStore | None = None,
        check_numerics: bool = False,
    ) -> None:
        """Neither return nor keep rows that are not finite, if `check_numerics`."""
        self._encoder, self._device, self._store, self._checks = encoder, device, store, check_numerics
        self.sizes = sizes

    def recall(self, digest: bytes) -> NDArray[Any] | None:
        """Return the rows of a tile that the store has, [tokens, hidden], the bits of bfloat16 as uint16; else None."""
        tile = self._store.read(digest) if self._store else None
        return None if tile is None else _array(tile.rows)

    @torch.inference_mode()
    def encode(self, tiles: Sequence[Tile]) -> list[NDArray[Any] | None]:
        """Encode tiles as one batch; return the rows of each, in the form of `recall`, or None where not finite."""
        pixels = torch.from_numpy(np.stack([tile.pixels for tile in tiles])).to(self._device)
        encoded = self._encoder(pixels).rows.cpu()
        broken = broken_rows(encoded).tolist() if self._checks else [False] * len(encoded)
        found = [None if wrong else rows.clone() for rows, wrong in zip(encoded, broken, strict=True)]
        if self._store:
            for tile, kept in ((tile, rows) for tile, rows in zip(tiles, found, strict=True) if rows is not None):
                self._store.write_later(tile.digest, StoredTileRows(kept))
        return [None if rows is None else _array(rows) for rows in found]

    def close(self) -> None:
        """Wait until the store has all tiles."""
        if self._store:
            self._store.close()


def build_tower(config: EngineConfig, model: Checkpoint) -> tuple[TileTower, Resolved]:
    """Load tower and projector, and no other weights. Raises the errors of `build_runner`."""
    started, platform = time.perf_counter(), current_platform(config.device)
    check_method(model.folder, config.quantization)
    architecture = Architecture.of(model.folder, config.flash_router, config.quantization)
    dtype = chosen_dtype(config, architecture, platform)
    resolved = _resolved(config, architecture, platform)
    rows_bytes = architecture.config.rows_per_page * architecture.config.decoder.hidden_size * dtype.itemsize
    kept = tile_folder(config, rows_bytes)
    if config.load_format != "dummy":
        model.fetch_weights(language=False)
    ops = platform.ops(resolved.limits.batch_invariant)
    encoder, weights = load_encoder(architecture, config, dtype, ops, platform.device)
    store = tile_store(config, kept, weights, architecture.config, dtype, platform, ops) if kept else None
    logger.info("Loading weights took %.2f seconds: tower and projector", time.perf_counter() - started)
    sizes, checks = resolved.limits.tile_batches, config.check_numerics
    return TileTower(encoder, sizes, platform.device, store, checks), resolved


def _resolved(config: EngineConfig, architecture: Architecture, platform: Platform) -> Resolved:
    """Return limits of an engine that has no sequences, no blocks and no pages, so that nothing is shared out."""
    model, invariant = architecture.config, why_batch_invariant(config, Environment.here()) is not None
    limits = Limits(
        max_num_seqs=config.max_num_seqs,
        max_model_len=model.decoder.rope.trained_length,
        max_num_batched_tokens=config.max_num_batched_tokens,
        block_size=platform.block_size,
        num_blocks=1,
        tokens_per_tile=model.tokens_per_tile,
        tile_pages=0,
        encode_budget=0,
        tiles_in_flight=0,
        batch_invariant=invariant,
        tile_batches=(1,) if invariant else platform.tile_batches,
    )
    return Resolved(limits, False, False, {}, platform.resize_kernels)


def _array(rows: Tensor) -> NDArray[Any]:
    rows = rows.contiguous()
    found: NDArray[Any] = (rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows).numpy()
    return found
