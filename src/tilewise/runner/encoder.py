"""EncoderLane: tiles into pages, in batches of fixed sizes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from tilewise.models.internvl import InternVL
from tilewise.step import EncodedTile, EncodeJob

BUCKETS = (16, 8, 4, 2, 1)


class EncoderLane:
    """Owns the tile pool [pages, rows a page, hidden]. Tiles of any request share a batch."""

    def __init__(self, model: InternVL, num_pages: int) -> None:
        self._model = model
        embedding = model.decoder.embedding
        self.pool = torch.zeros(
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
        return tuple(itertools.chain.from_iterable(map(self._run, buckets(jobs))))

    def _run(self, jobs: Sequence[EncodeJob]) -> list[EncodedTile]:
        pixels = torch.from_numpy(np.stack([job.pixels for job in jobs])).to(self.pool.device)
        encoded = self._model.encode(pixels)
        self.pool[torch.tensor([job.page for job in jobs], device=self.pool.device)] = encoded.rows
        scores = [None] * len(jobs) if encoded.scores is None else encoded.scores.tolist()
        return [EncodedTile(job.digest, score) for job, score in zip(jobs, scores, strict=True)]


def buckets(jobs: Sequence[EncodeJob]) -> Iterator[Sequence[EncodeJob]]:
    """Cut jobs into the fewest batches of bucket sizes: 13 -> 8, 4, 1."""
    start = 0
    for size in BUCKETS:
        while len(jobs) - start >= size:
            yield jobs[start : start + size]
            start += size
