"""BlockPool: who owns which KV block."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable


class BlockPool:
    """Free KV blocks, oldest first. Block 0 is never given out: padding writes to it."""

    def __init__(self, num_blocks: int) -> None:
        self._free = deque(range(1, num_blocks))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` blocks; the caller has checked `num_free`."""
        return [self._free.popleft() for _ in range(count)]

    def give_back(self, block_ids: Iterable[int]) -> None:
        self._free.extend(block_ids)
