"""KVCache: blocks for sequences, and prefixes that are shared.

The *chain hash* of a block is BLAKE2b over the hash of the block before it and its own content: token ids, and for
rows of tiles the tile's digest and which of its rows. Blocks of one hash hold the same keys and values, whatever the
request.
"""

from __future__ import annotations

import hashlib
import struct

from tilewise.engine.blocks import BlockPool
from tilewise.engine.sequence import SequenceState
from tilewise.sampling_params import SamplingParams

_HASH_BYTES = 16


class KVCache:
    """Grows and shrinks the block lists of sequences."""

    def __init__(self, num_blocks: int, block_size: int, share_prefixes: bool) -> None:
        self.pool = BlockPool(num_blocks)
        self._block_size = block_size
        self._share_prefixes = share_prefixes

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self._block_size)

    def missing(self, sequence: SequenceState, tokens: int) -> int:
        """Blocks that a sequence lacks to hold `tokens`."""
        return max(0, self.blocks_for(tokens) - len(sequence.block_ids))

    def grow(self, sequence: SequenceState, tokens: int) -> None:
        """Blocks to hold `tokens`; the caller has checked that there are enough."""
        sequence.block_ids += self.pool.take(self.missing(sequence, tokens))

    def known_prefix(self, sequence: SequenceState) -> list[int]:
        """Blocks that hold the beginning of a sequence already; one token at least is left to compute."""
        if not self._share_prefixes or not reads_prefixes(sequence.request.sampling):
            return []
        return self.pool.match(self._hashes(sequence, (sequence.num_tokens - 1) // self._block_size))

    def fits(self, sequence: SequenceState, prefix: list[int]) -> bool:
        """Whether all tokens of a sequence have room, given the prefix that it would share."""
        needed = self.blocks_for(sequence.num_tokens) - len(prefix) + self.pool.count_free(prefix)
        return needed <= self.pool.num_free

    def adopt(self, sequence: SequenceState, prefix: list[int]) -> None:
        """Begin a sequence behind a prefix that is there."""
        self.pool.share(prefix)
        sequence.block_ids = list(prefix)
        sequence.num_computed = len(prefix) * self._block_size

    def remember(self, sequence: SequenceState, start: int, stop: int) -> None:
        """Tokens [start, stop) of a sequence are computed: others may share the blocks that they fill."""
        first, last = start // self._block_size, stop // self._block_size
        if first == last or not self._share_prefixes:
            return
        for number, chain_hash in enumerate(self._hashes(sequence, last)[first:], first):
            self.pool.remember(sequence.block_ids[number], chain_hash)

    def release(self, sequence: SequenceState) -> None:
        self.pool.give_back(sequence.block_ids)
        sequence.block_ids = []

    def _hashes(self, sequence: SequenceState, count: int) -> list[bytes]:
        """Chain hashes of the first `count` blocks, whose tokens are all known."""
        return chain_hashes(sequence, count, self._block_size)


def reads_prefixes(sampling: SamplingParams) -> bool:
    """Whether a request may begin behind what is there; tokens that are not computed have no scores."""
    return not sampling.skip_reading_prefix_cache and sampling.prompt_logprobs is None


def chain_hashes(sequence: SequenceState, count: int, block_size: int) -> list[bytes]:
    """Of the first `count` blocks of a sequence, whose tokens are all known."""
    hashes = sequence.block_hashes
    while len(hashes) < count:
        start = len(hashes) * block_size
        before = hashes[-1] if hashes else _root(sequence.request.cache_salt)
        content = block_content(sequence, start, start + block_size)
        hashes.append(hashlib.blake2b(before + content, digest_size=_HASH_BYTES).digest())
    return hashes[:count]


def block_content(sequence: SequenceState, start: int, stop: int) -> bytes:
    """All that the keys and values of tokens [start, stop) depend on, beside those before: ids and rows of tiles."""
    ids = sequence.ids_between(start, stop)
    assert len(ids) == stop - start, "a block is known by tokens that are not"
    parts = [struct.pack(f"<{len(ids)}q", *ids)]
    for span in sequence.tiles_after(start):
        if span.position >= stop:
            break
        parts += [struct.pack("<3q", span.position - start, span.first, span.rows), span.tile.digest]
    return b"".join(parts)


def _root(salt: str | None) -> bytes:
    """Where a chain begins. Requests of different salts share nothing, so that none can probe for another's prompt."""
    return hashlib.blake2b((salt or "").encode(), digest_size=_HASH_BYTES).digest()
