"""KVCache: blocks for sequences, who owns which, and prefixes that are computed once.

The *chain hash* of a block is BLAKE2b over the hash of the block before it and its own content: token ids, and for
rows of tiles the tile's digest and which of its rows. Keys and values of a token depend on all tokens before it, which
is why the hash covers those, too: blocks of one hash hold the same keys and values, whatever the request.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from tilewise.engine.sequence import SequenceState
from tilewise.sampling_params import SamplingParams


class BlockPool:
    """The KV blocks of an engine and their owners. Block 0 is never given out: padding writes to it.

    A block that is full and computed is known by its chain hash, and a sequence that begins with the same tokens may
    share it. Blocks without an owner keep their content until the pool needs them, the longest unused first.
    """

    def __init__(self, num_blocks: int) -> None:
        self._free = OrderedDict.fromkeys(range(1, num_blocks))  # next to be given out first
        self._owners = [0] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Blocks without an owner; some of them may still be known by their content."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Take `count` blocks to write to; the caller has checked `num_free`."""
        block_ids = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block_id in block_ids:
            self._owners[block_id] = 1
            self._forget(block_id)
        return block_ids

    def match(self, hashes: Iterable[bytes]) -> list[int]:
        """Return the blocks of the longest known prefix of a chain. They are not owned yet."""
        found: list[int] = []
        for chain_hash in hashes:
            block_id = self._block_of.get(chain_hash)
            if block_id is None:
                break
            found.append(block_id)
        return found

    def count_free(self, block_ids: Iterable[int]) -> int:
        """Count those of the blocks that sharing would take out of `num_free`."""
        return sum(block_id in self._free for block_id in block_ids)

    def share(self, block_ids: Iterable[int]) -> None:
        """Add an owner to each block; nobody may write to them any more."""
        for block_id in block_ids:
            self._free.pop(block_id, None)
            self._owners[block_id] += 1

    def remember(self, block_id: int, chain_hash: bytes) -> None:
        """Make a full and computed block known. If another one holds the same already, that stays the known one."""
        if chain_hash not in self._block_of:
            self._block_of[chain_hash] = block_id
            self._hash_of[block_id] = chain_hash

    def give_back(self, block_ids: Sequence[int]) -> None:
        """Drop an owner of each. The end of a sequence is forgotten before its beginning, which others may share."""
        # `_free` is given out from its front, so that what enters first is overwritten first: hence from the end on. A
        # block behind a forgotten one could not be found any more, as a prefix is matched block by block.
        for block_id in reversed(block_ids):
            self._owners[block_id] -= 1
            if self._owners[block_id] == 0:
                self._free[block_id] = None
                if block_id not in self._hash_of:
                    self._free.move_to_end(block_id, last=False)  # worth nothing, so the first to go

    def forget_all(self) -> bool:
        """Forget the content of all blocks. While a block has an owner, return False and forget nothing."""
        if len(self._free) < len(self._owners) - 1:
            return False
        self._block_of.clear()
        self._hash_of.clear()
        return True

    def _forget(self, block_id: int) -> None:
        chain_hash = self._hash_of.pop(block_id, None)
        if chain_hash is not None:
            del self._block_of[chain_hash]


_HASH_BYTES = 16


class KVCache:
    """The KV blocks of all sequences: it grows, shares and releases their block lists."""

    def __init__(self, num_blocks: int, block_size: int, share_prefixes: bool) -> None:
        self.pool = BlockPool(num_blocks)
        self._block_size = block_size
        self._share_prefixes = share_prefixes

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self._block_size)

    def missing(self, sequence: SequenceState, tokens: int) -> int:
        """Return the number of blocks that a sequence lacks to hold `tokens`."""
        return max(0, self.blocks_for(tokens) - len(sequence.block_ids))

    def grow(self, sequence: SequenceState, tokens: int) -> None:
        """Give a sequence blocks to hold `tokens`; the caller has checked that there are enough."""
        sequence.block_ids += self.pool.take(self.missing(sequence, tokens))

    def known_prefix(self, sequence: SequenceState) -> list[int]:
        """Return the blocks that hold a sequence's beginning already; one token at least is left to compute."""
        if not self._share_prefixes or not reads_prefixes(sequence.request.sampling):
            return []
        # Without the last token: it has to be computed in any case, as the next one is chosen from its logits. A
        # waiting sequence has at most one token that the host does not know yet, so that all the others can be hashed.
        return self.pool.match(chain_hashes(sequence, (sequence.num_tokens - 1) // self._block_size, self._block_size))

    def fits(self, sequence: SequenceState, prefix: list[int]) -> bool:
        """Return whether all tokens of a sequence have room, given the prefix that it would share."""
        # A shared block need not be taken, but if nobody owns it, it is among the free ones and will leave them.
        needed = self.blocks_for(sequence.num_tokens) - len(prefix) + self.pool.count_free(prefix)
        return needed <= self.pool.num_free

    def adopt(self, sequence: SequenceState, prefix: list[int]) -> None:
        """Begin a sequence behind a prefix that is computed already."""
        self.pool.share(prefix)
        sequence.block_ids = list(prefix)
        sequence.num_granted = 0  # its new slot begins with an empty table
        sequence.num_computed = len(prefix) * self._block_size

    def remember(self, sequence: SequenceState, start: int, stop: int) -> None:
        """Let others share the blocks that tokens [start, stop) of a sequence fill; those are computed now."""
        # Blocks whose last token is among these are full from now on. The first of them may have begun before `start`;
        # the one in which `stop` falls is not full yet.
        first, last = start // self._block_size, stop // self._block_size
        if first == last or not self._share_prefixes:
            return
        for number, chain_hash in enumerate(chain_hashes(sequence, last, self._block_size)[first:], first):
            self.pool.remember(sequence.block_ids[number], chain_hash)

    def release(self, sequence: SequenceState) -> None:
        self.pool.give_back(sequence.block_ids)
        sequence.block_ids = []


def reads_prefixes(sampling: SamplingParams) -> bool:
    """Return whether a request may share prefixes; tokens that are not computed again have no prompt scores."""
    return not sampling.skip_reading_prefix_cache and sampling.prompt_logprobs is None


def chain_hashes(sequence: SequenceState, count: int, block_size: int) -> list[bytes]:
    """Return the chain hashes of the first `count` blocks of a sequence, whose tokens are all known.

    They are kept in the sequence, and new ones are added: tokens that are hashed do not change any more, since a Flash
    prompt has its final length before its first block is hashed.
    """
    hashes = sequence.block_hashes
    while len(hashes) < count:
        start = len(hashes) * block_size
        before = hashes[-1] if hashes else _root(sequence.request.cache_salt)
        content = block_content(sequence, start, start + block_size)
        hashes.append(hashlib.blake2b(before + content, digest_size=_HASH_BYTES).digest())
    return hashes[:count]


def block_content(sequence: SequenceState, start: int, stop: int) -> bytes:
    """Return what keys and values of tokens [start, stop) depend on beside the tokens before: ids and rows of tiles."""
    ids = sequence.ids_between(start, stop)
    assert len(ids) == stop - start, "a block is known by tokens that are not"
    parts = [struct.pack(f"<{len(ids)}q", *ids)]
    # All image tokens have the same id, so only a tile's digest tells one picture from another. A tile may begin in a
    # block before: its place is then negative, and says which of its rows stand in this block.
    for span in sequence.tiles_after(start):
        if span.position >= stop:
            break
        parts += [struct.pack("<3q", span.position - start, span.first, span.rows), span.tile.digest]
    return b"".join(parts)


def _root(salt: str | None) -> bytes:
    """Return the hash that a chain begins with. Requests of different salts share nothing, so that none can probe for
    another's prompt."""
    return hashlib.blake2b((salt or "").encode(), digest_size=_HASH_BYTES).digest()
