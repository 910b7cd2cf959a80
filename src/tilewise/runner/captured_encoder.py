"""CapturedEncoder: a tile encoder whose batches are captured once a size, and replayed.

Encoding a batch of tiles launches some hundred kernels, whose host time would come between the steps of sequences that
decode; replayed, it is one launch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tilewise.models.config import ModelConfig
from tilewise.models.tile_encoder import EncodedTiles, TileEncoder
from tilewise.platforms.base import Capture, Graph, NotCapturable

logger = logging.getLogger("tilewise")


@dataclass(frozen=True, slots=True)
class _Batch:
    """A captured batch, the pixels that it reads, and its scores, which each replay writes anew."""

    pixels: Tensor
    graph: Graph
    scores: Tensor | None

    def replay(self, pixels: Tensor) -> EncodedTiles:
        self.pixels.copy_(pixels)
        return EncodedTiles(self.graph.replay(), self.scores)


class CapturedEncoder:
    """A tile encoder that replays captured batches. Its results must be read before the next batch of that size."""

    def __init__(self, encoder: TileEncoder, capture: Capture) -> None:
        self._encoder = encoder
        self._capture: Capture | None = capture
        self._batches: dict[int, _Batch] = {}

    @property
    def config(self) -> ModelConfig:
        return self._encoder.config

    @property
    def num_steps(self) -> int:
        return self._encoder.num_steps

    def prepare(self, sizes: Sequence[int]) -> None:
        """Capture batches of all sizes, the largest first, in whose memory the others then have room."""
        side, device = self.config.tile_size, self._encoder.tower.device
        for size in sorted(sizes, reverse=True):
            for _ in self.steps(torch.zeros(size, side, side, 3, dtype=torch.uint8, device=device)):
                pass

    def steps(self, pixels: Tensor) -> Iterator[EncodedTiles | None]:
        """Encode as `TileEncoder.steps` does; a captured batch has the last step alone, which encodes all of it."""
        batch = self._batches.get(len(pixels)) or self._captured(pixels)
        if batch is None:
            yield from self._encoder.steps(pixels)
        else:
            yield batch.replay(pixels)

    def _captured(self, pixels: Tensor) -> _Batch | None:
        """Capture a batch of this size; return None if this encoder cannot be captured."""
        if self._capture is None:
            return None
        kept, scores = pixels.clone(), list[Tensor | None]()

        def step() -> Tensor:
            found = self._encoder(kept)
            scores.append(found.scores)
            return found.rows

        try:
            batch = _Batch(kept, self._capture(step), scores[-1])
        except NotCapturable as reason:
            logger.info("graphs: tiles are encoded op by op: %s", reason)
            self._capture = None
            return None
        self._batches[len(pixels)] = batch
        return batch
