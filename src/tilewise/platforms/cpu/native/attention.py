"""Calls of `src/attention.cpp`."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from tilewise.platforms.base import AttentionSize, PagedLayout
from tilewise.platforms.cpu.native.call import DTYPES, function, threads

_FLOAT = 4
_ROOM = 2**18
"""Numbers that sequences of a step may keep together until their parts are merged; more where one alone takes more."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A layout as the kernel reads it, for queries a key/value head, key/value heads and their width."""

    layout: PagedLayout
    sizes: tuple[int, ...]
    query_starts: ctypes.Array[ctypes.c_int64]
    seq_lens: ctypes.Array[ctypes.c_int64]
    room: int


class AttentionKernels:
    """Attention that keeps no scores; keys and values are read where they are."""

    def __init__(self, shared: ctypes.CDLL) -> None:
        self._dense = function(shared, "dense_attention", "ippppp" + "iiiiifpi")
        self._paged = function(shared, "paged_attention", "ippppp" + "ipppiiiiifippii")
        self._scratch = function(shared, "attention_scratch", "i", ctypes.c_int64)
        self._room = function(shared, "attention_room", "iiii", ctypes.c_int64)
        self._last: _Prepared | None = None

    def dense(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        tiles, queries, heads, width = query.shape
        out = torch.empty(query.shape, dtype=query.dtype)
        scratch = torch.empty(self._scratch(width) * threads())
        steps = _integers(step for x in (query, key, value) for step in x.stride()[:3])
        self._dense(
            *(DTYPES[query.dtype], query.data_ptr(), key.data_ptr(), value.data_ptr(), out.data_ptr(), steps),
            *(tiles, queries, key.shape[1], heads, width, scale, scratch.data_ptr(), threads()),
        )
        return out

    def paged(
        self,
        query: Tensor,
        cache: Tensor,
        layout: PagedLayout,
        scale: float,
        window: int | None,
        sinks: Tensor | None,
    ) -> Tensor:
        _, heads, width = query.shape
        to_values, *steps, _ = cache.stride()
        block_tokens, kv_heads = cache.shape[2:4]
        out = torch.empty(query.shape, dtype=query.dtype)
        step = self._prepared(layout, heads // kv_heads, kv_heads, width)
        scratch = torch.empty(step.room + self._scratch(width) * threads())
        sinks = None if sinks is None else sinks.float()
        table, keys = layout.block_table, cache.data_ptr()
        values = keys + to_values * cache.element_size()
        self._paged(
            *(DTYPES[query.dtype], query.data_ptr(), keys, values, out.data_ptr()),
            _integers((0, *query.stride()[:2], *steps, *steps)),
            *(len(layout.seq_lens), step.query_starts, step.seq_lens),
            *(table.data_ptr(), table.stride(0), heads, kv_heads, width, block_tokens, scale, window or 0),
            *(None if sinks is None else sinks.data_ptr(), scratch.data_ptr(), step.room, threads()),
        )
        return out

    def _prepared(self, layout: PagedLayout, *sizes: int) -> _Prepared:
        """The same for all layers of a step, so that it is made once."""
        last = self._last
        if last is None or last.layout is not layout or last.sizes != sizes:
            starts, lens = _integers(layout.query_starts), _integers(layout.seq_lens)
            last = self._last = _Prepared(layout, sizes, starts, lens, self._room_of(layout, *sizes))
        return last

    def scratch(self, size: AttentionSize, paged: bool) -> int:
        """Bytes of one call at most."""
        parts = self._room(size.queries * size.heads // size.kv_heads, size.keys, size.kv_heads, size.width)
        room = _whole(max(_ROOM, parts)) if paged else 0
        numbers: int = room + self._scratch(size.width) * threads()
        return _FLOAT * numbers

    def _room_of(self, layout: PagedLayout, group: int, kv_heads: int, width: int) -> int:
        """As much as all take if that is little, else as the one takes that takes most."""
        counts = map(int.__sub__, layout.query_starts[1:], layout.query_starts)
        parts = [
            self._room(count * group, keys, kv_heads, width)
            for count, keys in zip(counts, layout.seq_lens, strict=True)
        ]
        return _whole(max([min(sum(parts), _ROOM), *parts]))


def _integers(values: Iterable[int]) -> ctypes.Array[ctypes.c_int64]:
    numbers = tuple(values)
    return (ctypes.c_int64 * len(numbers))(*numbers)


def _whole(numbers: int) -> int:
    """Up to whole cache lines."""
    return -(-numbers // 16) * 16
