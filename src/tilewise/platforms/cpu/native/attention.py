"""Calls of `src/attention.cpp` and `src/attention_quantised.cpp`."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

import torch
from torch import Tensor

from tilewise.platforms.base import AttentionSize, PagedLayout
from tilewise.platforms.cpu.native.call import DTYPES, KeptRows, threads
from tilewise.platforms.cpu.native.library import Library
from tilewise.platforms.kv_cache import LayerCache

_FLOAT = 4
_ROOM = 2**18
"""Numbers that sequences of a step may keep together until their parts are merged; more where one alone takes more."""


class AttentionKernels:
    """Attention that keeps no scores; keys and values are read where they are."""

    def __init__(self, library: Library) -> None:
        self._dense = library.kernel("dense_attention", "ippppp" + "iiiiifpi")
        self._paged = library.kernel("paged_attention", "ippppp" + "ipppiiiiifippii")
        self._quantised = library.kernel("quantised_paged_attention", "iippppppp" + "ipppiiiiifippii")
        self._scratch = library.size("attention_scratch", "i")
        self._room = library.size("attention_room", "iiii")

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
        cache: LayerCache,
        layout: PagedLayout,
        scale: float,
        window: int | None,
        sinks: Tensor | None,
    ) -> Tensor:
        _, heads, width = query.shape
        kept = KeptRows.of(cache)
        to_values, *steps, _ = kept.numbers.stride()
        block_tokens, kv_heads = cache.shape[2:4]
        out = torch.empty(query.shape, dtype=query.dtype)
        table, keys = layout.block_table, kept.numbers.data_ptr()
        room = self._room_for(len(query) * heads // kv_heads, table.shape[1] * block_tokens, kv_heads, width)
        scratch = torch.empty(room + self._scratch(width) * threads())
        sinks = None if sinks is None else sinks.float()
        values = keys + to_values * kept.numbers.element_size()
        shared = (
            *(out.data_ptr(), _integers((0, *query.stride()[:2], *steps, *steps))),
            *(len(layout.seq_lens), layout.query_starts.data_ptr(), layout.seq_lens.data_ptr()),
            *(table.data_ptr(), table.stride(0), heads, kv_heads, width, block_tokens, scale, window or 0),
            *(None if sinks is None else sinks.data_ptr(), scratch.data_ptr(), room, threads()),
        )
        dtype, rows = DTYPES[query.dtype], query.data_ptr()
        if kept.kind:
            self._quantised(dtype, kept.kind, rows, keys, values, kept.key_scales, kept.value_scales, *shared)
        else:
            self._paged(dtype, rows, keys, values, *shared)
        return out

    def scratch(self, size: AttentionSize, paged: bool) -> int:
        """Bytes of one call at most."""
        rows = size.queries * size.heads // size.kv_heads
        room = self._room_for(rows, size.keys, size.kv_heads, size.width) if paged else 0
        numbers: int = room + self._scratch(size.width) * threads()
        return _FLOAT * numbers

    def _room_for(self, rows: int, keys: int, kv_heads: int, width: int) -> int:
        """Numbers, in whole cache lines. As sequences grow it stays the same: what is not needed is not touched."""
        return -(-max(_ROOM, self._room(rows, keys, kv_heads, width)) // 16) * 16


def _integers(values: Iterable[int]) -> ctypes.Array[ctypes.c_int64]:
    numbers = tuple(values)
    return (ctypes.c_int64 * len(numbers))(*numbers)
