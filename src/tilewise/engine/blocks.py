"""BlockPool: who owns which KV block, and which blocks hold what, so that an equal prefix is computed once.

A block that is full and computed is known by its chain hash (`kv_cache.py`), which covers all that comes before it too.
Blocks without an owner keep their content until the pool needs them, the longest unused first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """Block 0 is never given out: padding writes to it."""

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
        """`count` blocks to write to; the caller has checked `num_free`."""
        block_ids = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block_id in block_ids:
            self._owners[block_id] = 1
            self._forget(block_id)
        return block_ids

    def match(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks of the longest known prefix of a chain. They are not owned yet."""
        found: list[int] = []
        for chain_hash in hashes:
            block_id = self._block_of.get(chain_hash)
            if block_id is None:
                break
            found.append(block_id)
        return found

    def count_free(self, block_ids: Iterable[int]) -> int:
        """How many of these blocks sharing would take out of `num_free`."""
        return sum(block_id in self._free for block_id in block_ids)

    def share(self, block_ids: Iterable[int]) -> None:
        """One more owner for each; nobody may write to them."""
        for block_id in block_ids:
            self._free.pop(block_id, None)
            self._owners[block_id] += 1

    def remember(self, block_id: int, chain_hash: bytes) -> None:
        """A block is full and computed. If another block holds the same already, that one stays the known one."""
        if chain_hash not in self._block_of:
            self._block_of[chain_hash] = block_id
            self._hash_of[block_id] = chain_hash

    def give_back(self, block_ids: Sequence[int]) -> None:
        """Drop an owner of each. The ends of a sequence are forgotten before its beginning, which others may share."""
        for block_id in reversed(block_ids):
            self._owners[block_id] -= 1
            if self._owners[block_id] == 0:
                self._free[block_id] = None
                if block_id not in self._hash_of:
                    self._free.move_to_end(block_id, last=False)  # worth nothing, so the first to go

    def forget_all(self) -> bool:
        """Know no content any more. False, and nothing is forgotten, while a block has an owner."""
        if len(self._free) < len(self._owners) - 1:
            return False
        self._block_of.clear()
        self._hash_of.clear()
        return True

    def _forget(self, block_id: int) -> None:
        chain_hash = self._hash_of.pop(block_id, None)
        if chain_hash is not None:
            del self._block_of[chain_hash]
