"""EncoderLane: tiles into pages, in batches of fixed sizes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from tilewise.models.internvl import InternVL
from tilewise.parallel.mesh import Mesh
from tilewise.runner.tile_file import StoredTile
from tilewise.runner.tile_store import TileStore
from tilewise.step import EncodedTile, EncodeJob


class EncoderLane:
    """Owns the tile pool [pages, rows a page, hidden]. Tiles of any request share a batch, of one of the `sizes`.

    With a `store`, tiles that it has are read, and those that it lacks are given to it.
    """

    def __init__(
        self,
        model: InternVL,
        num_pages: int,
        sizes: Sequence[int],
        store: TileStore | None = None,
        mesh: Mesh = Mesh(),
    ) -> None:
        self._encoder = model.encoder
        self._mesh, self._ranks = mesh, range(mesh.size)
        self._scored = model.config.flash is not None
        self._store = store
        self._sizes = sizes
        # Not filled with anything: the system gives a page when a tile is written, and no other row is ever read.
        self.pool = torch.empty(
            num_pages if self._encoder else 0,
            model.config.rows_per_page,
            model.config.decoder.hidden_size,
            dtype=model.decoder.dtype,
            device=model.decoder.device,
        )

    @property
    def rows_per_page(self) -> int:
        return self.pool.shape[1]

    def encode(self, jobs: Sequence[EncodeJob]) -> tuple[EncodedTile, ...]:
        """Run the jobs; returns the tiles whose pages are filled, with their scores if the model has a router.

        Of several ranks, each encodes some batches, and all get the rows of all. Only the first stage of a pipeline
        has what encodes tiles.
        """
        if self._encoder is None:
            return ()
        recalled = self._recall(jobs)
        known = {tile.digest for tile in recalled}
        unknown = [job for job in jobs if job.digest not in known]
        parts = [
            [*itertools.islice(batches(unknown, self._sizes), rank, None, self._mesh.size)] for rank in self._ranks
        ]
        own = map(self._run, parts[self._mesh.rank])  # one behind the other, as each is kept
        if self._mesh.size > 1 and unknown:
            return (*recalled, *self._exchange([[*itertools.chain(*part)] for part in parts], own))
        kept = (self._keep(batch, *found) for batch, found in zip(parts[0], own, strict=True))
        return (*recalled, *itertools.chain.from_iterable(kept))

    def close(self) -> None:
        """The store has all tiles afterwards."""
        if self._store:
            self._store.close()

    def _recall(self, jobs: Sequence[EncodeJob]) -> list[EncodedTile]:
        """Tiles that the store has are read; only the first of several ranks has one, and gives them to the others."""
        found = [self._store.read(job.digest) if self._store else None for job in jobs]
        for job, tile in zip(jobs, found, strict=True):
            if tile is not None:
                self.pool[job.page] = tile.rows
        if self._mesh.size == 1 or not jobs:
            pairs = zip(jobs, found, strict=True)
            return [EncodedTile(job.digest, tile.score) for job, tile in pairs if tile is not None]
        read = [(tile is not None, (tile and tile.score) or 0.0) for tile in found]
        told = self._mesh.from_first(torch.tensor(read, dtype=torch.float64)).tolist()
        there = [(job, score) for job, (known, score) in zip(jobs, told, strict=True) if known]
        if pages := [job.page for job, _ in there]:
            self.pool[pages] = self._mesh.from_first(self.pool[pages])
        return [EncodedTile(job.digest, score if self._scored else None) for job, score in there]

    def _run(self, jobs: Sequence[EncodeJob]) -> tuple[Tensor, list[float | None]]:
        """Rows and scores of a batch."""
        pixels = torch.from_numpy(np.stack([job.pixels for job in jobs])).to(self.pool.device)
        assert self._encoder is not None
        encoded = self._encoder(pixels)
        return encoded.rows, [None] * len(jobs) if encoded.scores is None else encoded.scores.tolist()

    def _exchange(
        self, parts: list[list[EncodeJob]], own: Iterable[tuple[Tensor, list[float | None]]]
    ) -> Iterator[EncodedTile]:
        """Every rank's jobs with what they came to, of which this rank's `own` are known."""
        most = max(map(len, parts))
        rows = self.pool.new_zeros(most, *self.pool.shape[1:])
        scores = torch.zeros(most, dtype=torch.float64, device=self.pool.device)
        at = 0
        for found, scored in own:
            rows[at : at + len(found)] = found
            if self._scored:
                scores[at : at + len(found)] = torch.tensor(scored, dtype=torch.float64)
            at += len(found)
        everybody = zip(parts, self._mesh.gather(rows), self._mesh.gather(scores), strict=True)
        for jobs, some, those in everybody:
            known = those[: len(jobs)].tolist() if self._scored else [None] * len(jobs)
            yield from self._keep(jobs, some[: len(jobs)], known)

    def _keep(self, jobs: Sequence[EncodeJob], rows: Tensor, scores: Sequence[float | None]) -> list[EncodedTile]:
        """Into their pages, and into the store."""
        self.pool[[job.page for job in jobs]] = rows
        if self._store:
            for job, own, score in zip(jobs, rows, scores, strict=True):
                self._store.write_later(job.digest, StoredTile(own, score))
        return [EncodedTile(job.digest, score) for job, score in zip(jobs, scores, strict=True)]


def batches(jobs: Sequence[EncodeJob], sizes: Sequence[int]) -> Iterator[Sequence[EncodeJob]]:
    """Cut jobs into the fewest batches of these sizes, largest first: 13 into 8, 4 and 1 of (8, 4, 2, 1)."""
    start = 0
    for size in sizes:
        while len(jobs) - start >= size:
            yield jobs[start : start + size]
            start += size
