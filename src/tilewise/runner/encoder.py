"""EncoderLane: tiles into pages, in batches of fixed sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from tilewise.models.internvl import InternVL
from tilewise.step import EncodeJob

BUCKETS = (16, 8, 4, 2, 1)


class EncoderLane:
    """Owns the tile pool [pages, tokens a tile, hidden]. Tiles of any request share a batch."""

    def __init__(self, model: InternVL, num_pages: int) -> None:
        self._model = model
        embedding = model.decoder.embedding
        self.pool = torch.zeros(
            num_pages,
            model.config.tokens_per_tile,
            embedding.shape[1],
            dtype=embedding.dtype,
            device=embedding.device,
        )

    def encode(self, jobs: Sequence[EncodeJob]) -> tuple[bytes, ...]:
        """Run the jobs; returns the digests whose pages are filled."""
        for batch in buckets(jobs):
            pixels = torch.from_numpy(np.stack([job.pixels for job in batch])).to(self.pool.device)
            self._store([job.page for job in batch], self._model.encode(pixels))
        return tuple(job.digest for job in jobs)

    def _store(self, pages: list[int], rows: Tensor) -> None:
        self.pool[torch.tensor(pages, device=self.pool.device)] = rows


def buckets(jobs: Sequence[EncodeJob]) -> Iterator[Sequence[EncodeJob]]:
    """Cut jobs into the fewest batches of bucket sizes: 13 -> 8, 4, 1."""
    start = 0
    for size in BUCKETS:
        while len(jobs) - start >= size:
            yield jobs[start : start + size]
            start += size
