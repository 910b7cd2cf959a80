"""Forward: a model's decoder over batches, whose passes of a few tokens a sequence are captured once, and replayed, as
the batches of a CapturedEncoder are.

A CPU captures them as they come. A GPU captures a few sizes of passes of one token a sequence, at the start, and fills
others up to the next one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tilewise.models.config import ModelConfig
from tilewise.models.decoder import InternVL, ModelBatch
from tilewise.models.tile_encoder import EncodedTiles, TileEncoder
from tilewise.platforms.base import Capture, Capturer, Graph, NotCapturable
from tilewise.platforms.kv_cache import LayerCache
from tilewise.platforms.ops import INVARIANT_ROWS
from tilewise.step import Limits, Work

logger = logging.getLogger("tilewise")

Head = Callable[[Tensor], Tensor]
"""Hidden states [R, H] -> logits [R, vocabulary]."""


def logits_together(head: Head, hidden: Tensor, rows: Tensor) -> Tensor:
    """Compute logits of all rows in one product: how each is rounded depends on their number."""
    return head(hidden[rows])


def logits_one_by_one(head: Head, hidden: Tensor, rows: Tensor) -> Tensor:
    """Compute logits of a few rows, batch-invariant: a vocabulary is wide, and a panel takes as long as seven rows."""
    return torch.cat([head(hidden[row]) for row in rows.split(1)])


def logits_by_panels(head: Head, hidden: Tensor, rows: Tensor) -> Tensor:
    """Compute logits of many rows, batch-invariant: every panel that has one of them is computed whole."""
    panels, index = (rows // INVARIANT_ROWS).unique(return_inverse=True)
    logits = head(hidden.unflatten(0, (-1, INVARIANT_ROWS))[panels].flatten(0, 1))
    return logits[index * INVARIANT_ROWS + rows % INVARIANT_ROWS]


_ROWS = 64
"""Most rows of a pass that is captured; with more, launches are a small part of it."""
_GRAPHS = 64
"""Most graphs that are kept, where passes are captured as they come."""


@dataclass(frozen=True, slots=True)
class _Captured:
    """A graph, and the batch that it reads."""

    graph: Graph
    inputs: ModelBatch

    def replay(self, batch: ModelBatch) -> Tensor:
        torch._foreach_copy_(_changing(self.inputs), _changing(batch))  # in one launch, where a device can
        kept, new = self.inputs.layout.block_table, batch.layout.block_table
        kept[:, : new.shape[1]].copy_(new)  # what stands behind belongs to no token of this step
        return self.graph.replay(batch.layout)


class Forward:
    """A decoder that reads the tile pool and writes the caches. Graphs are kept by the token counts of sequences."""

    def __init__(
        self, model: InternVL, limits: Limits, caches: Sequence[LayerCache], pool: Tensor, capturer: Capturer | None
    ) -> None:
        """Launch passes op by op without a `capturer`, or where the model's passes cannot be captured."""
        self._model = model
        self._caches = caches
        self._pool = pool
        self._capture = capturer(model.ops) if capturer else None
        self._most_tokens = 1 + (limits.speculation.num_speculative_tokens if limits.speculation else 0)
        self._captured: dict[tuple[int, ...], _Captured] = {}
        self._sizes = limits.graph_sizes
        self._most_blocks = limits.blocks_a_sequence

    def filled_up(self, work: Sequence[Work]) -> int | None:
        """Return the number of sequences to which a pass of this work is filled up; None = it is computed as it is."""
        if self._capture is None or not self._sizes or len(work) > self._sizes[-1]:
            return None
        if any(item.count > 1 or item.tiles for item in work):
            return None
        return next(size for size in self._sizes if size >= len(work))

    def prepare(self, batch_of: Callable[[int], ModelBatch]) -> None:
        """Capture the passes of all sizes, the largest first, in whose memory the others then have room."""
        for size in reversed(self._sizes):
            self.hidden(batch_of(size))

    def hidden(self, batch: ModelBatch) -> Tensor:
        """Return `InternVL.hidden`, to be read before the next call. The batch's tensors are the caller's no longer."""
        counts = tuple(batch.layout.host_counts)
        if self._capture is None or not self._repeats(batch, counts):
            return self._hidden(batch)
        known = self._captured.pop(counts, None)
        if known is None:
            return self._first(self._capture, batch, counts)
        self._captured[counts] = known  # behind all others: the first one is the longest unused
        return known.replay(batch)

    def _hidden(self, batch: ModelBatch) -> Tensor:
        return self._model.hidden(batch, self._caches, self._pool)

    def _repeats(self, batch: ModelBatch, counts: tuple[int, ...]) -> bool:
        """Return whether a pass of this shape is short, and likely to come again."""
        if self._sizes:
            return len(counts) in self._sizes and max(counts) == 1 and not len(batch.image_rows)
        return max(counts) <= self._most_tokens and len(batch.token_ids) <= _ROWS and not len(batch.image_rows)

    def _first(self, capture: Capture, batch: ModelBatch, counts: tuple[int, ...]) -> Tensor:
        """Compute a pass of a new shape, and capture it if that is possible."""
        batch = self._with_whole_table(batch)
        try:
            graph = capture(lambda: self._hidden(batch))
        except NotCapturable as reason:
            logger.info("graphs: none, steps of this model are launched op by op: %s", reason)
            self._capture = None
            return self._hidden(batch)
        if len(self._captured) == _GRAPHS and not self._sizes:
            del self._captured[next(iter(self._captured))]  # the one that was replayed last the longest ago
        self._captured[counts] = _Captured(graph, batch)
        return graph.replay(batch.layout) if graph.first is None else graph.first

    def _with_whole_table(self, batch: ModelBatch) -> ModelBatch:
        """Return the batch with a block table in which the longest sequence has room, as replays may need it."""
        table = batch.layout.block_table
        whole = table.new_zeros(len(table), self._most_blocks)
        whole[:, : table.shape[1]] = table
        return replace(batch, layout=replace(batch.layout, block_table=whole))


def _changing(batch: ModelBatch) -> tuple[Tensor, ...]:
    """Return the tensors that may differ between two batches of one shape, but for the block table."""
    # A pass is found by the counts of its sequences' tokens, from which query_starts and token_rows follow. No captured
    # pass has rows of tiles, and logits_rows are read by the caller, out of its own batch.
    layout = batch.layout
    return batch.token_ids, batch.positions, layout.seq_lens, layout.kv_slots


@dataclass(frozen=True, slots=True)
class _CapturedBatch:
    """A captured batch, the pixels that it reads, and its scores, which each replay writes anew."""

    pixels: Tensor
    graph: Graph
    scores: Tensor | None

    def replay(self, pixels: Tensor) -> EncodedTiles:
        self.pixels.copy_(pixels)
        return EncodedTiles(self.graph.replay(), self.scores)


class CapturedEncoder:
    """A tile encoder whose batches are captured once a size, and replayed.

    Encoding a batch of tiles launches some hundred kernels, whose host time would come between the steps of sequences
    that decode; replayed, it is one launch. Its results must be read before the next batch of that size.
    """

    def __init__(self, encoder: TileEncoder, capture: Capture) -> None:
        self._encoder = encoder
        self._capture: Capture | None = capture
        self._batches: dict[int, _CapturedBatch] = {}

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

    def _captured(self, pixels: Tensor) -> _CapturedBatch | None:
        """Capture a batch of this size; return None if this encoder cannot be captured."""
        if self._capture is None:
            return None
        kept, scores = pixels.clone(), list[Tensor | None]()

        def step() -> Tensor:
            found = self._encoder(kept)
            scores.append(found.scores)
            return found.rows

        try:
            batch = _CapturedBatch(kept, self._capture(step), scores[-1])
        except NotCapturable as reason:
            logger.info("graphs: tiles are encoded op by op: %s", reason)
            self._capture = None
            return None
        self._batches[len(pixels)] = batch
        return batch
