"""EncoderLane: tiles into pages, in batches of fixed sizes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from tilewise.models.internvl import InternVL
from tilewise.runner.tile_file import StoredTile
from tilewise.runner.tile_store import TileStore
from tilewise.step import EncodedTile, EncodeJob


class EncoderLane:
    """Owns the tile pool [pages, rows a page, hidden]. Tiles of any request share a batch, of one of the `sizes`.

    With a `store`, tiles that it has are read, and those that it lacks are given to it.
    """

    def __init__(self, model: InternVL, num_pages: int, sizes: Sequence[int], store: TileStore | None = None) -> None:
        self._model = model
        self._store = store
        self._sizes = sizes
        embedding = model.decoder.embedding
        # Not filled with anything: the system gives a page when a tile is written, and no other row is ever read.
        self.pool = torch.empty(
            num_pages,
            model.config.rows_per_page,
            embedding.shape[1],
            dtype=embedding.dtype,
            device=embedding.device,
        )

    @property
    def rows_per_page(self) -> int:
        return self.pool.shape[1]

    def encode(self, jobs: Sequence[EncodeJob]) -> tuple[EncodedTile, ...]:
        """Run the jobs; returns the tiles whose pages are filled, with their scores if the model has a router."""
        recalled = self._recall(self._store, jobs) if self._store else []
        known = {tile.digest for tile in recalled}
        unknown = [job for job in jobs if job.digest not in known]
        return (*recalled, *itertools.chain.from_iterable(map(self._run, batches(unknown, self._sizes))))

    def close(self) -> None:
        """The store has all tiles afterwards."""
        if self._store:
            self._store.close()

    def _recall(self, store: TileStore, jobs: Sequence[EncodeJob]) -> list[EncodedTile]:
        found = []
        for job in jobs:
            if tile := store.read(job.digest):
                self.pool[job.page] = tile.rows
                found.append(EncodedTile(job.digest, tile.score))
        return found

    def _run(self, jobs: Sequence[EncodeJob]) -> list[EncodedTile]:
        pixels = torch.from_numpy(np.stack([job.pixels for job in jobs])).to(self.pool.device)
        encoded = self._model.encode(pixels)
        self.pool[torch.tensor([job.page for job in jobs], device=self.pool.device)] = encoded.rows
        scores = [None] * len(jobs) if encoded.scores is None else encoded.scores.tolist()
        if self._store:
            for job, rows, score in zip(jobs, encoded.rows, scores, strict=True):
                self._store.write_later(job.digest, StoredTile(rows, score))
        return [EncodedTile(job.digest, score) for job, score in zip(jobs, scores, strict=True)]


def batches(jobs: Sequence[EncodeJob], sizes: Sequence[int]) -> Iterator[Sequence[EncodeJob]]:
    """Cut jobs into the fewest batches of these sizes, largest first: 13 into 8, 4 and 1 of (8, 4, 2, 1)."""
    start = 0
    for size in sizes:
        while len(jobs) - start >= size:
            yield jobs[start : start + size]
            start += size
