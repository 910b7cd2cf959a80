"""ReplicaRouter: chooses which of several replicas gets a request.

The rule: a request goes where the least work is left when it is added. Work is counted in tokens. What a replica has
in flight is the prompts whose first token has not come, and `SEQUENCE` for each sequence that has not ended. What a
request adds is the tokens of its prompt behind the longest prefix that the replica was sent lately, and `TILE` times
the rows of each tile that it was not sent lately. So a request goes to the replica that has its tiles and its prefix
as long as that one is not busier than the least busy one by more than they save. Among equals the lowest number wins.

Replicas are not asked: what they have is what was sent to them, as much of it as their caches have room for, the
longest unused forgotten first, as they do themselves.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from tilewise.engine.kv_cache import chain_hashes, reads_prefixes
from tilewise.engine.sequence import SequenceState
from tilewise.step import Limits
from tilewise.types import Request

SEQUENCE = 64
"""Tokens that an answer counts for until it has ended: nobody knows how long it will be."""
TILE = 4
"""Tokens that encoding a tile counts for, for each of its rows: so many patches of the tower become one row."""


class Recent:
    """Digests of what a replica was sent lately, at most `room` of them."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._digests: OrderedDict[bytes, None] = OrderedDict()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._digests

    def add(self, digests: Sequence[bytes]) -> None:
        """Add digests. The first one is forgotten last, as no block of a prefix is of use without those before it."""
        for digest in reversed(digests):
            self._digests[digest] = None
            self._digests.move_to_end(digest)
        while len(self._digests) > self._room:
            self._digests.popitem(last=False)

    def clear(self) -> None:
        self._digests.clear()


@dataclass(frozen=True, slots=True)
class RequestParts:
    """The parts of a request that replicas may have already."""

    tokens: int
    block_size: int
    blocks: tuple[bytes, ...]
    """Chain hashes of the prompt's KV blocks, as the cache has them; the last token is computed in any case."""
    reads_prefixes: bool
    tiles: tuple[tuple[int, int, bytes], ...]
    """(position, rows, digest) of each tile."""

    @classmethod
    def of(cls, request: Request, limits: Limits) -> RequestParts:
        sequence = SequenceState.of(request.with_(grammar=None), limits.tokens_per_tile, limits.max_model_len)
        tokens, size = sequence.num_prompt, limits.block_size
        blocks = chain_hashes(sequence, (tokens - 1) // size, size) if limits.prefix_caching else ()
        tiles = tuple((span.position, span.rows, span.tile.digest) for span in sequence.tiles)
        return cls(tokens, size, tuple(blocks), reads_prefixes(request.sampling), tiles)


class ReplicaView:
    """A record of what the router knows of one replica."""

    def __init__(self, limits: Limits) -> None:
        self.in_flight = 0
        self.blocks = Recent(limits.num_blocks - 1)
        self.tiles = Recent(limits.tile_pages)

    def work_of(self, parts: RequestParts) -> int:
        """Return the tokens of work that a request would add."""
        known = 0
        if parts.reads_prefixes:
            known = next((i for i, digest in enumerate(parts.blocks) if digest not in self.blocks), len(parts.blocks))
        tokens = known * parts.block_size
        # Tiles that lie in the known prefix are not encoded, and one that a request has several times is encoded once.
        missing = {digest: rows for at, rows, digest in parts.tiles if at + rows > tokens and digest not in self.tiles}
        return parts.tokens - tokens + TILE * sum(missing.values())


class ReplicaRouter:
    """Chooses replicas, and keeps account of what is in flight. Deterministic: only the order of the calls counts."""

    def __init__(self, limits: Limits, replicas: int) -> None:
        """All replicas have the same limits."""
        self._limits = limits
        self._views = [ReplicaView(limits) for _ in range(replicas)]
        self._requests: dict[str, tuple[int, int]] = {}
        """Number of each request's replica, and the tokens of its prompt that are in flight, by the request's id."""

    def choose(self, request: Request, able: Iterable[int]) -> int:
        """Choose one of the replicas that are able, and count the request as its work."""
        parts = RequestParts.of(request, self._limits)
        work = {number: self._views[number].work_of(parts) for number in able}
        chosen = min(work, key=lambda number: (self._views[number].in_flight + work[number], number))
        view = self._views[chosen]
        view.in_flight += work[chosen] + SEQUENCE
        view.blocks.add(parts.blocks)
        view.tiles.add([digest for _, _, digest in parts.tiles])
        self._requests[request.id] = chosen, work[chosen]
        return chosen

    def in_flight(self, replica: int) -> int:
        """Return the tokens of work that a replica has not done yet."""
        return self._views[replica].in_flight

    def began(self, request_id: str) -> None:
        """Note that the first token of a request has come."""
        if request_id in self._requests:
            number, prompt = self._requests[request_id]
            self._views[number].in_flight -= prompt
            self._requests[request_id] = number, 0

    def ended(self, request_id: str) -> None:
        """Note that nothing more is computed for a request; unknown ones have ended before."""
        if request_id in self._requests:
            number, prompt = self._requests.pop(request_id)
            self._views[number].in_flight -= prompt + SEQUENCE

    def lost(self, replica: int) -> None:
        """Note that a replica has died, with all that it had."""
        self._views[replica] = ReplicaView(self._limits)
        self._requests = {name: place for name, place in self._requests.items() if place[0] != replica}

    def forget(self, cache: Literal["prefix", "tiles"]) -> None:
        """Note that a cache of all replicas is emptied."""
        for view in self._views:
            (view.blocks if cache == "prefix" else view.tiles).clear()
