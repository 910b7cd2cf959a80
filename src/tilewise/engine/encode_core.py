"""EncodeCore: an engine whose requests are pictures alone, and whose answers are the rows of their tiles.

Tiles of all requests share batches. A tile that was encoded before is not encoded again: its rows are kept in memory by
digest, the longest unused are dropped first, and the tower may still have dropped ones on disk.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from tilewise.engine.counters import Counters, EngineLoad
from tilewise.errors import NotFinite
from tilewise.types import Request, SequenceFailure, Tile

if TYPE_CHECKING:
    from numpy.typing import NDArray


class EncodedDelta(NamedTuple):
    """The answer to a request that has ended: the rows of its tiles, picture after picture."""

    request_id: str
    rows: tuple[NDArray[Any], ...]
    """Rows of each tile, [tokens, hidden]: float32, float16, or uint16 with the bits of bfloat16."""
    cached: tuple[bool, ...]
    """True for each tile that had been encoded before the request came."""
    finish_reason: str = "stop"


class EncodingTower(Protocol):
    """A tower that encodes tiles, and may have kept the rows of some from earlier."""

    @property
    def sizes(self) -> Sequence[int]:
        """Tiles of a batch, the largest number first; the last one is 1."""

    def recall(self, digest: bytes) -> NDArray[Any] | None:
        """Return the rows of a tile that was kept; None if they were not."""

    def encode(self, tiles: Sequence[Tile]) -> Sequence[NDArray[Any] | None]:
        """Encode tiles, as many as one of `sizes`; return the rows of each, or None where they are not finite."""

    def close(self) -> None: ...


@dataclass(slots=True)
class _Open:
    """A request that waits for some of its tiles."""

    tiles: tuple[Tile, ...]
    rows: dict[bytes, NDArray[Any]] = field(default_factory=dict)
    cached: set[bytes] = field(default_factory=set)
    not_kept: set[bytes] = field(default_factory=set)
    """Digests of tiles that the tower was asked for, which may mean a look on disk, and does not have."""

    @property
    def missing(self) -> Iterator[Tile]:
        return (tile for tile in self.tiles if tile.digest not in self.rows)


class EncodeCore:
    """An engine that answers pictures with encoded rows, and is driven as `EngineCore` is.

    A step encodes one batch, so that a request that comes meanwhile waits no longer than that.
    """

    def __init__(self, tower: EncodingTower, max_bytes: int) -> None:
        """Keep at most `max_bytes` of rows, beside those of requests that wait."""
        self._tower, self._max_bytes = tower, max_bytes
        self._open: dict[str, _Open] = {}
        self._kept: OrderedDict[bytes, NDArray[Any]] = OrderedDict()  # the longest unused first
        self._bytes = 0
        self._counters = Counters()

    @property
    def has_unfinished(self) -> bool:
        return bool(self._open)

    @property
    def counters(self) -> Counters:
        """A copy of what was counted since the start."""
        return self._counters.copy()

    @property
    def load(self) -> EngineLoad:
        return EngineLoad(min(1, len(self._open)), max(0, len(self._open) - 1), 0.0)

    def submit(self, request: Request) -> None:
        tiles = [tile for image in request.images for tile in image.tiles]
        waiting = self._open[request.id] = _Open(tuple(tile for tile in tiles if isinstance(tile, Tile)))
        for tile in waiting.tiles:
            rows = self._kept.get(tile.digest)
            if rows is not None:
                self._kept.move_to_end(tile.digest)
                waiting.rows[tile.digest] = rows
                waiting.cached.add(tile.digest)

    def abort(self, request_id: str) -> None:
        self._open.pop(request_id, None)

    def reset(self, cache: Literal["prefix", "tiles"]) -> bool:
        """Forget all rows that are kept here; those on disk stay."""
        if cache == "tiles":
            self._kept.clear()
            self._bytes = 0
        return True

    def step(self) -> list[EncodedDelta | SequenceFailure]:
        """Encode one batch, of the requests that came first; return those that have all their rows now, and those that
        will never have them.
        """
        batch, failures = self._next_batch(), list[SequenceFailure]()
        if batch:
            self._counters.tiles_encoded += len(batch)
            for tile, rows in zip(batch, self._tower.encode(batch), strict=True):
                if rows is None:
                    failures += self._fail(tile.digest)
                else:
                    self._give(tile.digest, rows)
        done = [name for name, waiting in self._open.items() if next(waiting.missing, None) is None]
        return [*failures, *map(self._finish, done)]

    def _fail(self, digest: bytes) -> Iterator[SequenceFailure]:
        """End the requests that wait for a tile whose rows are not finite."""
        waits = [name for name, waiting in self._open.items() if any(tile.digest == digest for tile in waiting.missing)]
        for name in waits:
            digests = [tile.digest for tile in self._open.pop(name).tiles]
            self._counters.not_finite_tower += 1
            where = f"tile {digests.index(digest) + 1} of {len(digests)}"
            yield SequenceFailure(name, NotFinite("tower", f"The embedding of {where} is NaN or infinite"))

    def check(self) -> None:
        """Do nothing: no other process computes for this engine."""

    def close(self) -> None:
        self._tower.close()

    def _next_batch(self) -> list[Tile]:
        """Return tiles to encode, as many as one of the sizes; give out those that the tower had kept."""
        found: dict[bytes, Tile] = {}
        for waiting in self._open.values():
            for tile in list(waiting.missing):
                if len(found) == self._tower.sizes[0]:
                    break
                if tile.digest in found or tile.digest in waiting.rows:
                    continue
                rows = None if tile.digest in waiting.not_kept else self._tower.recall(tile.digest)
                if rows is None:
                    waiting.not_kept.add(tile.digest)
                    found[tile.digest] = tile
                else:
                    self._give(tile.digest, rows, cached=True)
        size = next((size for size in self._tower.sizes if size <= len(found)), 0)
        return list(found.values())[:size]

    def _give(self, digest: bytes, rows: NDArray[Any], cached: bool = False) -> None:
        """Give a tile's rows to all requests that wait for it, and keep them for later ones."""
        for waiting in self._open.values():
            if digest not in waiting.rows and any(tile.digest == digest for tile in waiting.tiles):
                waiting.rows[digest] = rows
                if cached:
                    waiting.cached.add(digest)
        if rows.nbytes > self._max_bytes:
            return
        while self._bytes + rows.nbytes > self._max_bytes:
            _, gone = self._kept.popitem(last=False)
            self._bytes -= gone.nbytes
        self._kept[digest] = rows
        self._bytes += rows.nbytes

    def _finish(self, name: str) -> EncodedDelta:
        waiting = self._open.pop(name)
        digests = [tile.digest for tile in waiting.tiles]
        cached = tuple(digest in waiting.cached for digest in digests)
        self._counters.tile_cache_queries += len(digests)
        self._counters.tile_cache_hits += sum(cached)
        return EncodedDelta(name, tuple(map(waiting.rows.__getitem__, digests)), cached)
