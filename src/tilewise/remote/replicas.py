"""Replicas: engines of one model side by side, each in a process of its own, behind one interface.

A single replica is its supervisor, without a router. Several have a supervisor each: one that dies ends its own
requests alone, and new ones go to the others until it is back. All methods belong to one event loop.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tilewise.config import EngineConfig
from tilewise.engine.counters import Counters, EngineLoad
from tilewise.engine.kv_cache import chain_hashes, reads_prefixes
from tilewise.engine.sequence import SequenceState
from tilewise.errors import EngineDead, InvalidConfig, TilewiseError
from tilewise.host import Memory, available_memory
from tilewise.plan import Resolved
from tilewise.remote.engine import EngineProcess, Sink, Stream
from tilewise.remote.supervisor import RestartRule, State, Supervisor, Watcher
from tilewise.remote.wire import Launch, Outbox, Ready
from tilewise.step import Limits
from tilewise.types import Request
from tilewise.units import in_bytes

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
        """Tokens of work that it has not done yet."""
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
    """Chooses which of several replicas gets a request. Deterministic: only the order of the calls counts.

    The rule: a request goes where the least work is left when it is added. Work is counted in tokens. What a replica
    has in flight is the prompts whose first token has not come, and `SEQUENCE` for each sequence that has not ended.
    What a request adds is the tokens of its prompt behind the longest prefix that the replica was sent lately, and
    `TILE` times the rows of each tile that it was not sent lately. So a request goes to the replica that has its tiles
    and its prefix as long as that one is not busier than the least busy one by more than they save. Among equals the
    lowest number wins.

    Replicas are not asked: what they have is what was sent to them, as much of it as their caches have room for, the
    longest unused forgotten first, as they do themselves.
    """

    def __init__(self, limits: Limits, replicas: int) -> None:
        """All replicas have the same limits."""
        self._limits = limits
        self.views = [ReplicaView(limits) for _ in range(replicas)]
        self._requests: dict[str, tuple[int, int]] = {}
        """Number of each request's replica, and the tokens of its prompt that are in flight, by the request's id."""

    def choose(self, request: Request, able: Iterable[int]) -> int:
        """Choose one of the replicas that are able, and count the request as its work."""
        parts = RequestParts.of(request, self._limits)
        work = {number: self.views[number].work_of(parts) for number in able}
        chosen = min(work, key=lambda number: (self.views[number].in_flight + work[number], number))
        view = self.views[chosen]
        view.in_flight += work[chosen] + SEQUENCE
        view.blocks.add(parts.blocks)
        view.tiles.add([digest for _, _, digest in parts.tiles])
        self._requests[request.id] = chosen, work[chosen]
        return chosen

    def began(self, request_id: str) -> None:
        """Note that the first token of a request has come."""
        if request_id in self._requests:
            number, prompt = self._requests[request_id]
            self.views[number].in_flight -= prompt
            self._requests[request_id] = number, 0

    def ended(self, request_id: str) -> None:
        """Note that nothing more is computed for a request; unknown ones have ended before."""
        if request_id in self._requests:
            number, prompt = self._requests.pop(request_id)
            self.views[number].in_flight -= prompt + SEQUENCE

    def lost(self, replica: int) -> None:
        """Note that a replica has died, with all that it had."""
        self.views[replica] = ReplicaView(self._limits)
        self._requests = {name: place for name, place in self._requests.items() if place[0] != replica}

    def forget(self, cache: Literal["prefix", "tiles"]) -> None:
        """Note that a cache of all replicas is emptied."""
        for view in self.views:
            (view.blocks if cache == "prefix" else view.tiles).clear()


_PROCESS = 256 * 2**20
"""Bytes that a process with torch takes before it has a model."""


def memory_part(config: EngineConfig) -> Memory | None:
    """Return each replica's part of the memory that this machine has now; None = the only one measures for itself.

    Memory is measured once, for all replicas and all their lives: replicas that start side by side, or again, would
    each find something else. Raises InvalidConfig where not even their libraries fit.
    """
    replicas = config.data_parallel_size
    if replicas == 1:
        return None
    memory = available_memory()
    each = 1 if config.distributed_executor_backend == "ray" else config.layout.ranks  # Ray's are on nodes of their own
    processes = replicas * each
    if processes * _PROCESS > memory.free:
        most = max(1, memory.free // (_PROCESS * each))
        raise InvalidConfig(
            f"data_parallel_size={replicas} is not possible: {processes} processes take {in_bytes(_PROCESS)} each "
            f"before they have a model, and {in_bytes(memory.free)} are free: use {most} at most."
        )
    return Memory(memory.total // replicas, memory.free // replicas)


class ReplicaGroup:
    """Owns the supervisors of `data_parallel_size` engines, and says which one gets a request."""

    def __init__(self, launch: Launch, rule: RestartRule) -> None:
        size, ranks = launch.config.data_parallel_size, launch.config.layout.ranks
        self.engines = tuple(
            Supervisor(replace(launch, first_device=number * ranks), rule, number, f"Engine {number}")
            for number in range(size)
        )
        # Requests without a seed draw from the same one as in one engine, in the order in which they come.
        self._seeds = random.Random(launch.config.seed)
        self._places: dict[str, int] = {}
        """Number of the engine of each request that somebody waits for, by the request's id."""

    async def start(self, process: EngineProcess | None = None) -> Ready:
        """Start the engines, the first in a process that may have begun already; return when all have loaded the model.

        Raises the error of the first that cannot start; none is left then.
        """
        first = process or EngineProcess(0)
        processes = [first, *(EngineProcess(number, first.tiles) for number in range(1, len(self.engines)))]
        starts = [engine.begin(its) for engine, its in zip(self.engines, processes, strict=True)]
        try:
            ready, *_ = await asyncio.gather(*starts)
        except BaseException:
            self.discard()
            raise
        self._router = ReplicaRouter(ready.resolved.limits, len(self.engines))
        self.watch(self)
        return ready

    @property
    def state(self) -> State:
        """State of all together: ready while any of them takes requests."""
        states = [engine.state for engine in self.engines]
        order: tuple[State, ...] = ("ready", "restarting", "starting", "closed", "failed")
        return next(state for state in order if state in states)

    def watch(self, watcher: Watcher) -> None:
        """Tell a watcher of all steps and changes of state from now on."""
        for engine in self.engines:
            engine.watch(watcher)

    @property
    def resolved(self) -> Resolved:
        """Sizes and choices that all engines run with."""
        return self.engines[0].resolved

    @property
    def load(self) -> EngineLoad:
        """Load of the engines that take requests, together."""
        return EngineLoad.total(engine.load for engine in self.engines if engine.state == "ready")

    @property
    def counters(self) -> Counters:
        """Counters of all engines together."""
        return Counters.total(engine.counters for engine in self.engines)

    @property
    def retry_after(self) -> int:
        """Seconds after which asking again makes sense."""
        return min(engine.retry_after for engine in self.engines)

    @property
    def _able(self) -> list[int]:
        return [engine.number for engine in self.engines if engine.is_able]

    def open(self, requests: Sequence[Request]) -> Stream[Any]:
        """Submit requests; their tokens come through the stream. Raises EngineDead while there is no engine."""
        self.check()
        chosen = self._route(requests)
        places = {request.id: engine.number for request, engine in chosen}
        stream = Stream(list(places), self.forget, places)
        self._hand_out(chosen, stream)
        return stream

    def submit(self, requests: Sequence[Request], sink: Sink) -> None:
        """Submit requests; their tokens go to the sink until `forget` is called. Raises EngineDead if none is there."""
        self.check()
        self._hand_out(self._route(requests), sink)

    def _route(self, requests: Sequence[Request]) -> list[tuple[Request, Supervisor]]:
        able = self._able
        seeded = [self._seeded(request) for request in requests]
        return [(request, self.engines[self._router.choose(request, able)]) for request in seeded]

    def _hand_out(self, chosen: Sequence[tuple[Request, Supervisor]], sink: Sink) -> None:
        for request, engine in chosen:
            self._places[request.id] = engine.number
            engine.submit([request], sink)

    def _seeded(self, request: Request) -> Request:
        if request.sampling.seed is not None:
            return request
        return request.with_(sampling=request.sampling.with_(seed=self._seeds.getrandbits(63)))

    def check(self) -> None:
        """Raise EngineDead unless requests are taken."""
        if not self._able:
            state = "restarting" if self.state == "ready" else self.state
            raise EngineDead(f"All engines are {state}: send the request again in {self.retry_after} seconds.")

    async def reset(self, cache: Literal["prefix", "tiles"]) -> bool:
        """Empty a cache of all engines; return whether all of it is empty now. Raises EngineDead."""
        self.check()
        self._router.forget(cache)
        resets = [self.engines[number].reset(cache) for number in self._able]
        # One that dies meanwhile has nothing left.
        done = await asyncio.gather(*resets, return_exceptions=True)
        return all(isinstance(one, EngineDead) or one is True for one in done)

    def discard(self) -> None:
        """End the engines at once, as nobody will ask them."""
        for engine in self.engines:
            engine.discard()

    async def close(self) -> None:
        """End the engines, and every stream that is left."""
        await asyncio.gather(*(engine.close() for engine in self.engines))

    def end_streams(self, error: TilewiseError) -> None:
        """Tell all that wait for requests why nothing more will come."""
        for engine in self.engines:
            engine.end_streams(error)

    def forget(self, request_ids: Sequence[str], unfinished: tuple[str, ...]) -> None:
        """Drop requests that nobody waits for any more, and abort those of them that are unfinished."""
        groups: dict[int, list[str]] = defaultdict(list)
        for request_id in request_ids:
            if (place := self._places.pop(request_id, None)) is not None:
                self._router.ended(request_id)
                groups[place].append(request_id)
        for place, group in groups.items():
            self.engines[place].forget(group, tuple(name for name in group if name in unfinished))

    def took(self, engine: int, outbox: Outbox) -> None:
        """Take what a step has done out of the router's account of work."""
        for delta in outbox.deltas:
            if delta.finish_reason is not None:
                self._router.ended(delta.request_id)
            elif delta.moments is not None:  # which comes with the first token alone
                self._router.began(delta.request_id)

    def became(self, engine: int, state: State) -> None:
        """Tell the router of an engine that has died; one that is back begins with nothing."""
        if state != "ready":
            self._router.lost(engine)


Replicas = Supervisor | ReplicaGroup
"""The engines of a model, one or several, which are used alike."""


def replicas_of(launch: Launch, rule: RestartRule = RestartRule()) -> Replicas:
    return Supervisor(launch, rule) if launch.config.data_parallel_size == 1 else ReplicaGroup(launch, rule)
