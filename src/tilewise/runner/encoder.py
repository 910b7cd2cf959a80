"""EncoderLane: tiles into pages, beside decoding: a few layers of the tower behind every step."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from tilewise.models.internvl import InternVL
from tilewise.models.tile_encoder import EncodedTiles, TileEncoder
from tilewise.parallel.mesh import Mesh
from tilewise.platforms.base import Capturer
from tilewise.platforms.transfers import Arriving, Streams, fetched, sent
from tilewise.runner.captured_encoder import CapturedEncoder
from tilewise.runner.tile_file import StoredTile
from tilewise.runner.tile_store import TileStore
from tilewise.runner.vision_workers import VisionWorkers
from tilewise.step import EncodedTile, EncodeJob, RowsJob


class EncoderLane:
    """Owns the tile pools [pages, rows a page, hidden], one of each model that reads tiles.

    Tiles of any request share a batch, of one of the `sizes`. Batches are encoded one behind the other, in slices, so
    that steps of sequences that decode come between. Of several ranks, each encodes a batch in a round, and all get
    the rows of all; all do as much of it behind the same step. With a `store`, tiles that it has are read, and those
    that it lacks are given to it. In a pipeline, only the first stage has anything to encode with.

    With vision `workers`, these encode, and nothing is left to do between steps but to carry pixels and rows. With
    `streams`, the device encodes whole batches beside the steps, and a tile is there when it says so; batches are
    captured if there is a `capturer`.
    """

    def __init__(
        self,
        models: Sequence[InternVL],
        num_pages: int,
        sizes: Sequence[int],
        store: TileStore | None = None,
        mesh: Mesh = Mesh(),
        workers: VisionWorkers | None = None,
        streams: Streams | None = None,
        capturer: Capturer | None = None,
    ) -> None:
        """The model, and its draft model if it has one, which goes through the same tiles."""
        self._encoders: list[TileEncoder | CapturedEncoder] = [
            _captured(model.encoder, capturer) if streams else model.encoder for model in models if model.encoder
        ]
        self._workers, self._streams = workers, streams
        self._beside: deque[_Beside] = deque()
        self._has_pages = bool(self._encoders) or workers is not None
        self._scored = models[0].config.flash is not None
        self._sizes, self._store, self._mesh = sizes, store, mesh
        self._queue: deque[EncodeJob] = deque()
        self._recalled: dict[bytes, tuple[EncodeJob, EncodedTile]] = {}
        """Tiles that the store had, and that a draft model has yet to encode."""
        self._round: _Round | None = None
        self.pools = [_empty_pool(model, num_pages if self._has_pages else 0) for model in models]

    def prepare(self) -> None:
        """Capture batches of all sizes, if any are captured."""
        for encoder in self._encoders:
            if isinstance(encoder, CapturedEncoder) and self._streams:
                with self._streams.tiles():
                    encoder.prepare(self._sizes)

    @property
    def _steps_a_tile(self) -> int:
        return sum(encoder.num_steps for encoder in self._encoders)

    @property
    def _own_part(self) -> int:
        return self._mesh.rank if self._mesh.encoders > 1 else 0

    def take(self, jobs: Sequence[EncodeJob]) -> tuple[EncodedTile, ...]:
        """Queue the jobs; returns those tiles that the store has, which are in their pages now."""
        if not self._has_pages:
            return ()
        recalled = {tile.digest: tile for tile in self._recall(jobs)}
        self._queue += [job for job in jobs if job.digest not in recalled]
        if len(self._encoders) < 2:
            return tuple(recalled.values())
        self._recalled |= {job.digest: (job, recalled[job.digest]) for job in jobs if job.digest in recalled}
        return ()

    def advance(self, tiles: float | None, wait: bool = True) -> tuple[EncodedTile, ...]:
        """Encode as much as so many tiles take, at least a layer; None = until a batch is in its pages.

        Returns the tiles whose pages have been filled, with their scores if the model has a router. Workers encode
        anyway, and are waited for if there is nothing else to compute (`wait`).
        """
        if self._workers is not None:
            return self._from_workers(self._workers, wait)
        if self._streams is not None:
            return self._from_beside(self._streams, wait)
        left = None if tiles is None else tiles * self._steps_a_tile
        filled: list[EncodedTile] = []
        while round := self._round or self._next_round():
            self._round = round
            steps = round.steps_left if left is None else min(round.steps_left, max(1, int(left // round.size)))
            round.run(steps)
            if not round.steps_left:
                filled += self._finish(round)
                self._round = None
            if left is None:
                break
            left -= steps * round.size
            if left < round.size:
                break
        return tuple(filled)

    def write(self, jobs: Sequence[RowsJob]) -> Iterator[EncodedTile]:
        """Tiles that came encoded go into their pages, and not into the store, which has what was computed here."""
        for job in jobs if self._has_pages else ():
            rows = torch.from_numpy(np.array(job.rows))  # a copy: the array may be read-only
            self.pools[0][job.page] = rows.view(torch.bfloat16) if rows.dtype == torch.uint16 else rows
            yield EncodedTile(job.digest)

    def _from_beside(self, streams: Streams, wait: bool) -> tuple[EncodedTile, ...]:
        """While one batch is encoded, the next one is in line."""
        filled: list[EncodedTile] = []
        while len(self._beside) < (1 if self._recalled else _IN_LINE) and (round := self._next_round()):
            with streams.tiles():
                round.run(round.steps_left)
                streams.follow_steps()
                self._fill(round)
                scores = fetched(*(x for x in (round.found[0].scores,) if x is not None))
                self._beside.append(_Beside(round, scores, streams.tiles_done()))
        while self._beside and (self._beside[0].done.query() or (wait and not filled)):
            first = self._beside.popleft()
            first.done.synchronize()
            filled += self._known(first.round, first.scores.wait())
        return tuple(filled)

    def _from_workers(self, workers: VisionWorkers, wait: bool) -> tuple[EncodedTile, ...]:
        filled: list[EncodedTile] = []
        self._hand_out(workers)
        for jobs, found in workers.finished(wait):
            self.pools[0][[job.page for job in jobs]] = found.rows
            scores = [None] * len(jobs) if found.scores is None else found.scores.tolist()
            filled += self._keep(jobs, scores)
        self._hand_out(workers)
        return tuple(filled)

    def _hand_out(self, workers: VisionWorkers) -> None:
        """A batch for each worker that waits, of the largest size that leaves as much for each of the others."""
        while self._queue and workers.is_free:
            fair = max(1, len(self._queue) // workers.count)
            size = next(size for size in self._sizes if size <= fair)
            workers.give([self._queue.popleft() for _ in range(size)])

    def check(self) -> None:
        """Raises RankDied if a vision worker has ended."""
        if self._workers:
            self._workers.check()

    def close(self) -> None:
        """The store has all tiles afterwards that were encoded, and workers have ended."""
        if self._workers:
            self._workers.close()
        if self._store:
            self._store.close()

    def _next_round(self) -> _Round | None:
        """A batch for each rank, as far as there are tiles."""
        if self._recalled:
            waiting = deque(job for job, _ in self._recalled.values())
            return _Round(self._batches(waiting), self._own_part, self._encoders[1:], self.pools[1:])
        if not self._queue:
            return None
        return _Round(self._batches(self._queue), self._own_part, self._encoders, self.pools)

    def _batches(self, waiting: deque[EncodeJob]) -> list[list[EncodeJob]]:
        """For each rank, a batch of the largest size for which there are still tiles; none for the last ranks."""
        parts = []
        for _ in range(self._mesh.encoders):
            size = next((size for size in self._sizes if size <= len(waiting)), 0)
            parts.append([waiting.popleft() for _ in range(size)])
        return parts

    def _recall(self, jobs: Sequence[EncodeJob]) -> list[EncodedTile]:
        """Tiles that the store has are read; only the first of several ranks has one, and gives them to the others."""
        found = [self._store.read(job.digest) if self._store else None for job in jobs]
        pool = self.pools[0]
        for job, tile in zip(jobs, found, strict=True):
            if tile is not None:
                pool[job.page] = tile.rows
        if self._mesh.size == 1 or not jobs:
            pairs = zip(jobs, found, strict=True)
            return [EncodedTile(job.digest, tile.score) for job, tile in pairs if tile is not None]
        read = [(tile is not None, (tile and tile.score) or 0.0) for tile in found]
        told = self._mesh.from_first(torch.tensor(read, dtype=torch.float64)).tolist()
        there = [(job, score) for job, (known, score) in zip(jobs, told, strict=True) if known]
        if pages := [job.page for job, _ in there]:
            pool[pages] = self._mesh.from_first(pool[pages])
        return [EncodedTile(job.digest, score if self._scored else None) for job, score in there]

    def _finish(self, round: _Round) -> list[EncodedTile]:
        """The round's rows into their pages; returns the tiles, in the order of their jobs."""
        self._fill(round)
        scores = round.found[0].scores
        return self._known(round, () if scores is None else (self._of_all(round, scores),))

    def _fill(self, round: _Round) -> None:
        """Every rank's rows into the pages of all."""
        pages = sent([job.page for job in round.jobs], self.pools[0].device)
        for pool, found in zip(round.pools, round.found, strict=True):
            pool[pages] = self._of_all(round, found.rows)

    def _known(self, round: _Round, scores: tuple[Tensor, ...]) -> list[EncodedTile]:
        """The tiles of a round that is in its pages."""
        if round.jobs[0].digest in self._recalled:
            return [self._recalled.pop(job.digest)[1] for job in round.jobs]
        return self._keep(round.jobs, scores[0].tolist() if scores else [None] * len(round.jobs))

    def _of_all(self, round: _Round, own: Tensor) -> Tensor:
        """What each rank has found of its part [its tiles, ...], on all ranks, in the order of `round.jobs`."""
        if self._mesh.encoders == 1:
            return own
        filled = own.new_zeros(round.size, *own.shape[1:])
        filled[: len(own)] = own
        parts = zip(round.parts, self._mesh.gather(filled), strict=True)
        return torch.cat([some[: len(part)] for part, some in parts])

    def _keep(self, jobs: Sequence[EncodeJob], scores: Sequence[float | None]) -> list[EncodedTile]:
        """Into the store."""
        if self._store:
            for job, score in zip(jobs, scores, strict=True):
                (rows,) = fetched(self.pools[0][job.page].clone()).wait()
                self._store.write_later(job.digest, StoredTile(rows, score))
        return [EncodedTile(job.digest, score) for job, score in zip(jobs, scores, strict=True)]


_IN_LINE = 2
"""Batches that are given to a device at a time."""


class _Done(Protocol):
    """An event of a device."""

    def query(self) -> bool: ...

    def synchronize(self) -> None: ...


class _Beside(NamedTuple):
    """A batch that is encoded beside steps."""

    round: _Round
    scores: Arriving
    done: _Done


class _Round:
    """A batch on each rank, on its way through the encoders of the model and its draft model."""

    def __init__(
        self,
        parts: list[list[EncodeJob]],
        rank: int,
        encoders: Sequence[TileEncoder | CapturedEncoder],
        pools: Sequence[Tensor],
    ) -> None:
        self.parts, self.pools = parts, pools
        self.jobs = [job for part in parts for job in part]
        self.size = max(map(len, parts))
        self.steps_left = sum(encoder.num_steps for encoder in encoders)
        self.found: list[EncodedTiles] = []
        """By encoder, what became of this rank's part."""
        self._slices = self._encode(parts[rank], encoders)

    def run(self, steps: int) -> None:
        """Go on by so many layers; a rank without tiles has none to compute."""
        self.steps_left -= steps
        for _ in itertools.islice(self._slices, steps):
            pass
        if not self.steps_left:
            for _ in self._slices:  # an empty part has its results only at its end
                pass

    def _encode(self, jobs: Sequence[EncodeJob], encoders: Sequence[TileEncoder | CapturedEncoder]) -> Iterator[None]:
        if not jobs:
            self.found = [_nothing(pool, encoder) for pool, encoder in zip(self.pools, encoders, strict=True)]
            return
        pixels = sent(np.stack([job.pixels for job in jobs]), self.pools[0].device, torch.uint8)
        for encoder in encoders:
            for found in encoder.steps(pixels):
                if found is not None:
                    self.found.append(found)
                yield


def _captured(encoder: TileEncoder, capturer: Capturer | None) -> TileEncoder | CapturedEncoder:
    capture = capturer(encoder.ops) if capturer else None
    return encoder if capture is None else CapturedEncoder(encoder, capture)


def _nothing(pool: Tensor, encoder: TileEncoder | CapturedEncoder) -> EncodedTiles:
    scores = torch.empty(0, device=pool.device) if encoder.config.flash else None
    return EncodedTiles(pool.new_empty(0, *pool.shape[1:]), scores)


def _empty_pool(model: InternVL, pages: int) -> Tensor:
    """Not filled with anything: the system gives a page when a tile is written, and no other row is ever read."""
    return torch.empty(
        pages,
        model.config.rows_per_page,
        model.config.decoder.hidden_size,
        dtype=model.decoder.dtype,
        device=model.decoder.device,
    )
