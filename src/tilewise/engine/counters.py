"""Counters of an engine, and the line that is logged of them every few seconds."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

logger = logging.getLogger("tilewise")


@dataclass(slots=True)
class Counters:
    """Counts of an engine since its start. They only grow; rates are differences between two copies."""

    prompt_tokens: int = 0
    """Prompt tokens that were computed."""
    generation_tokens: int = 0
    prefix_cache_queries: int = 0
    """Tokens of all sequences at their first admission."""
    prefix_cache_hits: int = 0
    """Tokens among these whose keys and values were cached already."""
    tiles_encoded: int = 0
    tile_cache_queries: int = 0
    """Tiles of all sequences that have come to their first token."""
    tile_cache_hits: int = 0
    """Tiles among these for which nothing was encoded."""
    preemptions: int = 0
    mm_cache_queries: int = 0
    """Pictures and frames to be cut into tiles; these are counted as inputs are prepared, not by the engine."""
    mm_cache_hits: int = 0
    """Pictures and frames among these that had been cut before."""
    not_finite_tower: int = 0
    """Requests that ended because rows of their tiles were NaN or infinite."""
    not_finite_decoder: int = 0
    """Requests that ended because numbers of the decoder were NaN or infinite."""
    drafts: int = 0
    """Times that tokens were guessed."""
    draft_tokens: int = 0
    """Tokens that were guessed."""
    accepted_tokens: int = 0
    """Guessed tokens that were right, and all before them in their draft, too."""
    accepted_at: list[int] = field(default_factory=list)
    """`accepted_tokens` by their place in the draft."""

    def copy(self) -> Counters:
        return dataclasses.replace(self, accepted_at=list(self.accepted_at))

    @classmethod
    def total(cls, several: Iterable[Counters]) -> Counters:
        """Return the sums over several engines."""
        found = list(several)
        numbers = [field.name for field in dataclasses.fields(cls) if field.name != "accepted_at"]
        places = itertools.zip_longest(*(one.accepted_at for one in found), fillvalue=0)
        sums = {name: sum(getattr(one, name) for one in found) for name in numbers}
        return cls(**sums, accepted_at=[sum(counts) for counts in places])

    def verified(self, drafted: int, right: int) -> None:
        """Count a draft of `drafted` guesses, of which the first `right` were right."""
        self.drafts += 1
        self.draft_tokens += drafted
        self.accepted_tokens += right
        self.accepted_at += [0] * (drafted - len(self.accepted_at))
        for place in range(right):
            self.accepted_at[place] += 1


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """The load of an engine at one moment, in sequences and in KV blocks."""

    running: int
    waiting: int
    kv_cache_usage: float
    """Share of the blocks that are in use, 0 to 1."""

    @classmethod
    def total(cls, several: Iterable[EngineLoad]) -> EngineLoad:
        """Return the load of several engines that have equally many blocks; zeros for no engine."""
        found = list(several)
        usage = sum(one.kv_cache_usage for one in found) / max(1, len(found))
        return cls(sum(one.running for one in found), sum(one.waiting for one in found), usage)


def stats_line(before: Counters, now: Counters, seconds: float, load: EngineLoad, engine: int = 0) -> str:
    """Return vLLM's log line about an engine, word for word, so that scripts that read it go on working."""
    prompt, generation = now.prompt_tokens - before.prompt_tokens, now.generation_tokens - before.generation_tokens
    preemptions = now.preemptions - before.preemptions
    parts = [
        f"Engine {engine:03d}: Avg prompt throughput: {prompt / seconds:.1f} tokens/s",
        f"Avg generation throughput: {generation / seconds:.1f} tokens/s",
        f"Running: {load.running} reqs",
        f"Waiting: {load.waiting} reqs",
        *([f"Preemptions: {preemptions}"] if preemptions else []),
        f"GPU KV cache usage: {100 * load.kv_cache_usage:.1f}%",
        f"Prefix cache hit rate: {_percent(now.prefix_cache_hits, now.prefix_cache_queries)}",
        *([f"MM cache hit rate: {_percent(now.mm_cache_hits, now.mm_cache_queries)}"] if now.mm_cache_queries else []),
    ]
    return ", ".join(parts)


def _percent(hits: int, queries: int) -> str:
    return f"{100 * hits / queries if queries else 0.0:.1f}%"


def guesses_line(before: Counters, now: Counters, seconds: float) -> str:
    """Return vLLM's log line about speculative decoding, word for word; there has to be a draft in between."""
    drafts, drafted = now.drafts - before.drafts, now.draft_tokens - before.draft_tokens
    accepted = now.accepted_tokens - before.accepted_tokens
    places = itertools.zip_longest(now.accepted_at, before.accepted_at, fillvalue=0)
    rates = ", ".join(f"{(after - earlier) / drafts:.3f}" for after, earlier in places)
    return (
        f"SpecDecoding metrics: Mean acceptance length: {1 + accepted / drafts:.2f}, "
        f"Accepted throughput: {accepted / seconds:.2f} tokens/s, "
        f"Drafted throughput: {drafted / seconds:.2f} tokens/s, "
        f"Accepted: {accepted} tokens, Drafted: {drafted} tokens, Per-position acceptance rate: {rates}, "
        f"Avg Draft acceptance rate: {100 * accepted / drafted:.1f}%"
    )


class StatsLog:
    """A periodic log line about an engine.

    Its level is INFO if the engine was at work in the interval or in the one before, else DEBUG.
    """

    def __init__(self, interval: float, now: float, engine: int = 0) -> None:
        """Begin at `now`, on the monotonic clock as all times here; `interval` is in seconds, `engine` is a number."""
        self._interval, self._engine = interval, engine
        self._since = now
        self._before = Counters()
        self._was_busy = False

    def tick(self, counters: Counters, load: EngineLoad, now: float) -> None:
        seconds, before = now - self._since, self._before
        if seconds < self._interval:
            return
        if counters.prompt_tokens < before.prompt_tokens or counters.generation_tokens < before.generation_tokens:
            before = Counters()  # another process counts now
        busy = (counters.prompt_tokens, counters.generation_tokens) != (before.prompt_tokens, before.generation_tokens)
        level = logging.INFO if busy or self._was_busy else logging.DEBUG
        logger.log(level, "%s", stats_line(before, counters, seconds, load, self._engine))
        if counters.drafts > before.drafts:
            logger.info("%s", guesses_line(before, counters, seconds))
        self._since, self._before, self._was_busy = now, counters.copy(), busy
