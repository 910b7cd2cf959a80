"""EncoderLane: encodes tiles into pages beside decoding, a few layers of the tower behind every step."""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tilewise.models.decoder import InternVL
from tilewise.models.tile_encoder import EncodedTiles, TileEncoder
from tilewise.parallel.mesh import Mesh
from tilewise.platforms.base import Capturer
from tilewise.platforms.transfers import Event, PendingCopy, Streams, send, start_copy_to_host, to_device
from tilewise.runner.finite import broken_rows
from tilewise.runner.forward import CapturedEncoder
from tilewise.runner.tile_store import EncodedTileStore, StoredTileRows
from tilewise.runner.vision_workers import VisionWorkers
from tilewise.step import EncodedTile, EncodeJob, RowsJob


class EncoderLane:
    """The tiles that wait to be encoded, and the tile pools [pages, rows a page, hidden], one for each model.

    Tiles of any request share a batch, of one of the `sizes`. Batches are encoded one behind the other, in slices of
    some layers, so that steps of sequences that decode come between. Several ranks work in rounds: each encodes a batch
    of its own, and all get the rows of all; all do as many layers behind the same step, so that their collectives
    meet. With a `store`, tiles that it has are read, and those that it lacks are given to it. In a pipeline, only the
    first stage has a tower, and encodes.

    With vision `workers`, these encode, and nothing is left to do between steps but to carry pixels and rows. With
    `streams`, the device encodes whole batches beside the steps, and says when one is done; batches are captured if
    there is a `capturer`.
    """

    def __init__(
        self,
        models: Sequence[InternVL],
        num_pages: int,
        sizes: Sequence[int],
        store: EncodedTileStore | None = None,
        mesh: Mesh = Mesh(),
        workers: VisionWorkers | None = None,
        streams: Streams | None = None,
        capturer: Capturer | None = None,
        check_numerics: bool = False,
    ) -> None:
        """Allocate pools. `models` are the model and its draft model, if any, which encodes the same tiles itself.

        With `check_numerics`, each tile says whether its rows are finite, and none that is not is kept.
        """
        self._encoders: list[TileEncoder | CapturedEncoder] = [
            _captured(model.encoder, capturer) if streams else model.encoder for model in models if model.encoder
        ]
        self._workers, self._streams, self._checks = workers, streams, check_numerics
        self._beside: deque[_BatchInFlight] = deque()
        self._has_pages = bool(self._encoders) or workers is not None
        self._scored = models[0].config.flash is not None
        self._sizes, self._store, self._mesh = sizes, store, mesh
        self._queue: deque[EncodeJob] = deque()
        self._recalled: dict[bytes, tuple[EncodeJob, EncodedTile]] = {}
        """Tiles that the store had, and that a draft model has yet to encode, by digest."""
        self._round: _EncodingRound | None = None
        self._timed = (0.0, 0.0)  # seconds and tiles
        self.pools = [_empty_pool(model, num_pages if self._has_pages else 0) for model in models]
        self._nobody_asks = torch.empty(0, device=self.pools[0].device)

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
        """Queue the jobs; return the tiles that the store has, which are in their pages now."""
        if not self._has_pages:
            return ()
        recalled = {tile.digest: tile for tile in self._recall(jobs)}
        self._queue += [job for job in jobs if job.digest not in recalled]
        if len(self._encoders) < 2:
            return tuple(recalled.values())
        # The store has the model's rows, not the draft model's: such tiles are ready only after a round of that one
        # alone.
        self._recalled |= {job.digest: (job, recalled[job.digest]) for job in jobs if job.digest in recalled}
        return ()

    def advance(self, tiles: float | None, wait: bool = True) -> tuple[EncodedTile, ...]:
        """Encode as much as so many tiles take, at least a layer; None = until a batch is in its pages.

        Return the tiles whose pages have been filled, with their scores if the model has a router. Workers encode
        anyway, and are waited for if there is nothing else to compute (`wait`).
        """
        if self._workers is not None:
            return self._from_workers(self._workers, wait)
        if self._streams is not None:
            return self._from_beside(self._streams, wait)
        # `left` counts layers of single tiles, so a step of a round takes as many as the round has tiles. The first
        # step is done in any case, or a budget below one layer of a batch would never let it begin.
        left = None if tiles is None else tiles * self._steps_a_tile
        filled: list[EncodedTile] = []
        began, done = time.perf_counter(), 0
        while round := self._round or self._next_round():
            self._round = round
            steps = round.steps_left if left is None else min(round.steps_left, max(1, int(left // round.size)))
            round.run(steps)
            done += steps * round.size
            if not round.steps_left:
                filled += self._finish(round)
                self._round = None
            if left is None:
                break
            left -= steps * round.size
            if left < round.size:
                break
        if done:
            self._time(time.perf_counter() - began, done / self._steps_a_tile)
        return tuple(filled)

    def _time(self, seconds: float, tiles: float) -> None:
        """Note that so many tiles took so long; what was measured before fades."""
        self._timed = (_FADES * self._timed[0] + seconds, _FADES * self._timed[1] + tiles)

    @property
    def tile_seconds(self) -> float | None:
        """Seconds that encoding one tile takes here, as measured of late; None where it goes on beside steps."""
        return self._timed[0] / self._timed[1] if self._timed[1] else None

    def write(self, jobs: Sequence[RowsJob]) -> Iterator[EncodedTile]:
        """Write tiles that came encoded into their pages, but not into the store, which has what was computed here."""
        for job in jobs if self._has_pages else ():
            rows = torch.from_numpy(np.array(job.rows))  # a copy: the array may be read-only
            rows = rows.view(torch.bfloat16) if rows.dtype == torch.uint16 else rows
            self.pools[0][job.page] = send(rows, self.pools[0].device)
            # As the pool has them: float32 may be too large for its dtype.
            finite = not self._checks or not self._broken([job.page]).any()
            yield EncodedTile(job.digest, finite=finite)

    def _from_beside(self, streams: Streams, wait: bool) -> tuple[EncodedTile, ...]:
        """Give the device a batch and the next one in line; return the tiles of those that are done."""
        filled: list[EncodedTile] = []
        # A recalled tile leaves `_recalled` when its round is done: a second round before that would take it again.
        while len(self._beside) < (1 if self._recalled else _IN_LINE) and (round := self._next_round()):
            with streams.tiles():
                round.run(round.steps_left)
                # Layers run beside the steps. The pages, however, may hold other tiles, which steps launched so far
                # still read: only behind those may they be filled.
                streams.follow_steps()
                self._fill(round)
                facts = self._facts(round, round.found[0].scores)
                copied = start_copy_to_host(*facts, self._for_store(round.jobs))
                self._beside.append(_BatchInFlight(round, copied, streams.tiles_done()))
        while self._beside and (self._beside[0].done.query() or (wait and not filled)):
            first = self._beside.popleft()
            first.done.synchronize()
            filled += self._known(first.round, *first.copied.wait())
        return tuple(filled)

    def _from_workers(self, workers: VisionWorkers, wait: bool) -> tuple[EncodedTile, ...]:
        """Put rows that workers have finished into their pages, and give them new batches; return the tiles."""
        filled: list[EncodedTile] = []
        self._hand_out(workers)
        for jobs, found in workers.finished(wait):
            device, nothing = self.pools[0].device, torch.empty(0)
            self.pools[0][to_device([job.page for job in jobs], device)] = send(found.rows, device)
            broken = broken_rows(found.rows) if self._checks else nothing
            scores = nothing if found.scores is None else found.scores
            filled += self._keep(jobs, scores, broken, found.rows if self._store else nothing)
        self._hand_out(workers)
        return tuple(filled)

    def _hand_out(self, workers: VisionWorkers) -> None:
        """Give a batch to each worker that waits, of the largest size that leaves as much for each of the others."""
        while self._queue and workers.is_free:
            fair = max(1, len(self._queue) // workers.count)
            size = next(size for size in self._sizes if size <= fair)
            workers.give([self._queue.popleft() for _ in range(size)])

    def check(self) -> None:
        """Raise RankDied if a vision worker has ended."""
        if self._workers:
            self._workers.check()

    def close(self) -> None:
        """End the workers, and wait until the store has all tiles that were encoded."""
        if self._workers:
            self._workers.close()
        if self._store:
            self._store.close()

    def _next_round(self) -> _EncodingRound | None:
        """Return a round with a batch for each rank, as far as there are tiles; None without any."""
        if self._recalled:
            waiting = deque(job for job, _ in self._recalled.values())
            return _EncodingRound(self._batches(waiting), self._own_part, self._encoders[1:], self.pools[1:])
        if not self._queue:
            return None
        return _EncodingRound(self._batches(self._queue), self._own_part, self._encoders, self.pools)

    def _batches(self, waiting: deque[EncodeJob]) -> list[list[EncodeJob]]:
        """Take a batch for each rank, of the largest size for which there are still tiles; none for the last ranks."""
        parts = []
        for _ in range(self._mesh.encoders):
            size = next((size for size in self._sizes if size <= len(waiting)), 0)
            parts.append([waiting.popleft() for _ in range(size)])
        return parts

    def _recall(self, jobs: Sequence[EncodeJob]) -> list[EncodedTile]:
        """Read the tiles that the store has. Only the first of several ranks has one, and gives tiles to the others."""
        found = [self._store.read(job.digest) if self._store else None for job in jobs]
        pool = self.pools[0]
        for job, tile in zip(jobs, found, strict=True):
            if tile is not None:
                pool[job.page] = send(tile.rows, pool.device)
        if self._mesh.size == 1 or not jobs:
            pairs = zip(jobs, found, strict=True)
            return [EncodedTile(job.digest, tile.score) for job, tile in pairs if tile is not None]
        read = [(tile is not None, (tile and tile.score) or 0.0) for tile in found]
        told = self._mesh.from_first(torch.tensor(read, dtype=torch.float64)).tolist()
        there = [(job, score) for job, (known, score) in zip(jobs, told, strict=True) if known]
        if pages := [job.page for job, _ in there]:
            pool[pages] = self._mesh.from_first(pool[pages])
        return [EncodedTile(job.digest, score if self._scored else None) for job, score in there]

    def _finish(self, round: _EncodingRound) -> list[EncodedTile]:
        """Write a round's rows into their pages; return the tiles, in the order of their jobs."""
        self._fill(round)
        scores = round.found[0].scores
        facts = self._facts(round, None if scores is None else self._of_all(round, scores))
        return self._known(round, *facts, self._for_store(round.jobs))

    def _fill(self, round: _EncodingRound) -> None:
        """Write every rank's rows into the pages of all ranks."""
        pages = to_device([job.page for job in round.jobs], self.pools[0].device)
        for pool, found in zip(round.pools, round.found, strict=True):
            pool[pages] = self._of_all(round, found.rows)

    def _facts(self, round: _EncodingRound, scores: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return scores of a round's tiles, and which of them are not finite; each is empty where nobody asks."""
        return self._nobody_asks if scores is None else scores, self._broken([job.page for job in round.jobs])

    def _broken(self, pages: Sequence[int]) -> Tensor:
        """Return which of some filled pages have rows that are not finite; nothing if these are not checked."""
        if not self._checks:
            return self._nobody_asks
        return broken_rows(self._rows(pages))

    def _for_store(self, jobs: Sequence[EncodeJob]) -> Tensor:
        """Return a copy of the rows of tiles that are in their pages; nothing if none are stored."""
        return self._rows([job.page for job in jobs]) if self._store else self._nobody_asks

    def _rows(self, pages: Sequence[int]) -> Tensor:
        """Return a copy of some pages [pages, rows, hidden] of the model's pool."""
        return self.pools[0][to_device(list(pages), self.pools[0].device)]

    def _known(self, round: _EncodingRound, scores: Tensor, broken: Tensor, rows: Tensor) -> list[EncodedTile]:
        """Return the tiles of a round that is in its pages, and give those to the store that it lacks."""
        if round.jobs[0].digest in self._recalled:
            return [self._recalled.pop(job.digest)[1] for job in round.jobs]
        return self._keep(round.jobs, scores, broken, rows)

    def _of_all(self, round: _EncodingRound, own: Tensor) -> Tensor:
        """Return the results [tiles, ...] of all ranks, of which `own` is this rank's, in the order of `round.jobs`.

        Collectives need one shape on all ranks: each part is filled up to the largest one, and cut again.
        """
        if self._mesh.encoders == 1:
            return own
        filled = own.new_zeros(round.size, *own.shape[1:])
        filled[: len(own)] = own
        parts = zip(round.parts, self._mesh.gather(filled), strict=True)
        return torch.cat([some[: len(part)] for part, some in parts])

    def _keep(self, jobs: Sequence[EncodeJob], scores: Tensor, broken: Tensor, rows: Tensor) -> list[EncodedTile]:
        """Give encoded tiles and their rows, as by `_for_store`, to the store, if there is one; return them."""
        flags = broken.tolist() or [False] * len(jobs)
        found = [
            EncodedTile(job.digest, score, not flag and (score is None or not self._checks or math.isfinite(score)))
            for job, score, flag in zip(jobs, scores.tolist() or [None] * len(jobs), flags, strict=True)
        ]
        if self._store:
            (on_host,) = start_copy_to_host(rows).wait()  # those of batches beside steps are there already
            for job, tile, own in zip(jobs, found, on_host, strict=True):
                if tile.finite:
                    self._store.write_later(job.digest, StoredTileRows(own, tile.score))
        return found


_FADES = 0.9
"""Weight that a measurement has one step later."""
_IN_LINE = 2
"""Most batches that a device has at a time: one that it encodes, and the next."""


class _BatchInFlight(NamedTuple):
    """A batch that is encoded beside steps."""

    round: _EncodingRound
    copied: PendingCopy
    """Scores, which tiles are not finite, and rows for the store, as `EncoderLane._facts` and `_for_store` give them:
    copied behind the batch itself, as another wait would be one for the steps launched since.
    """
    done: Event


class _EncodingRound:
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
        self.size = max(map(len, parts))  # ranks with fewer tiles wait for those with most
        self.steps_left = sum(encoder.num_steps for encoder in encoders)
        self.found: list[EncodedTiles] = []
        """Results of this rank's part, one for each encoder."""
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
        pixels = to_device(np.stack([job.pixels for job in jobs]), self.pools[0].device, torch.uint8)
        for encoder in encoders:
            for found in encoder.steps(pixels):
                if found is not None:
                    self.found.append(found)
                yield


def _captured(encoder: TileEncoder, capturer: Capturer | None) -> TileEncoder | CapturedEncoder:
    capture = capturer(encoder.ops) if capturer else None
    return encoder if capture is None else CapturedEncoder(encoder, capture)


def _nothing(pool: Tensor, encoder: TileEncoder | CapturedEncoder) -> EncodedTiles:
    """Return the result of encoding no tile at all."""
    scores = torch.empty(0, device=pool.device) if encoder.config.flash else None
    return EncodedTiles(pool.new_empty(0, *pool.shape[1:]), scores)


def _empty_pool(model: InternVL, pages: int) -> Tensor:
    """Allocate a pool without filling it: the system gives memory when a tile is written, and no other row is read."""
    return torch.empty(
        pages,
        model.config.rows_per_page,
        model.config.decoder.hidden_size,
        dtype=model.decoder.dtype,
        device=model.decoder.device,
    )
