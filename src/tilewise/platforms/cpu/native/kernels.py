"""Calls of the kernels for rows and attention, and `Native`: all kernels, and which of them must not be called."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tilewise.platforms.base import AttentionSize, PagedLayout
from tilewise.platforms.cpu.native import NoKernels
from tilewise.platforms.cpu.native.library import DTYPES, KeptRows, Library, Rows, threads
from tilewise.platforms.cpu.native.matrices import MatrixKernels
from tilewise.platforms.kv_cache import LayerCache

_FLOAT = 4
_ROOM = 2**18
"""Numbers that sequences of a step may keep together until their parts are merged; more where one alone takes more."""


class AttentionKernels:
    """The kernels of attention, which keep no scores, and read keys and values where they are."""

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
        """Return the bytes that one call takes at most."""
        rows = size.queries * size.heads // size.kv_heads
        room = self._room_for(rows, size.keys, size.kv_heads, size.width) if paged else 0
        numbers: int = room + self._scratch(size.width) * threads()
        return _FLOAT * numbers

    def _room_for(self, rows: int, keys: int, kv_heads: int, width: int) -> int:
        """Return how many numbers sequences keep until their parts are merged, in whole cache lines.

        As sequences grow it stays the same: what is not needed is not touched.
        """
        return -(-max(_ROOM, self._room(rows, keys, kv_heads, width)) // 16) * 16


def _integers(values: Iterable[int]) -> ctypes.Array[ctypes.c_int64]:
    numbers = tuple(values)
    return (ctypes.c_int64 * len(numbers))(*numbers)


class RowKernels:
    """The kernels that compute each row by itself. `rows` says where those of x are; the rest has no gaps."""

    def __init__(self, library: Library) -> None:
        self._rms_norm = library.kernel("rms_norm", "ipiiiippifi")
        self._layer_norm = library.kernel("layer_norm", "ipiiiipppifi")
        self._silu_mul = library.kernel("silu_mul", "ippiii")
        self._gelu = library.kernel("gelu", "ippii")
        self._rope_into_cache = library.kernel("rope_into_cache", "iii" + "piii" * 2 + "pii" + "pppppii" + "ippi")
        self._add_scaled = library.kernel("add_scaled", "ippppiii")
        self._add_rms_norm = library.kernel("add_rms_norm", "ipppp" + "ppiifi")
        self._add_layer_norm = library.kernel("add_layer_norm", "ipppp" + "pppiifi")

    def rms_norm(self, x: Tensor, rows: Rows, weight: Tensor, eps: float) -> Tensor:
        out = torch.empty(x.shape, dtype=x.dtype)
        self._rms_norm(*_place(x, rows), weight.data_ptr(), out.data_ptr(), x.shape[-1], eps, threads())
        return out

    def layer_norm(self, x: Tensor, rows: Rows, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        out = torch.empty(x.shape, dtype=x.dtype)
        parameters = weight.data_ptr(), bias.data_ptr()
        self._layer_norm(*_place(x, rows), *parameters, out.data_ptr(), x.shape[-1], eps, threads())
        return out

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        *outer, width = gate_up.shape
        out = torch.empty(*outer, width // 2, dtype=gate_up.dtype)
        rows = gate_up.numel() // max(1, width)
        self._silu_mul(DTYPES[out.dtype], gate_up.data_ptr(), out.data_ptr(), rows, width // 2, threads())
        return out

    def gelu(self, x: Tensor) -> Tensor:
        out = torch.empty(x.shape, dtype=x.dtype)
        self._gelu(DTYPES[x.dtype], x.data_ptr(), out.data_ptr(), x.numel(), threads())
        return out

    def rope_into_cache(
        self, query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache, slots: Tensor
    ) -> Tensor:
        kept = KeptRows.of(cache)
        out, (tokens, heads, width) = torch.empty(query.shape, dtype=query.dtype), query.shape
        self._rope_into_cache(
            *(DTYPES[query.dtype], tokens, width // 2),
            *(query.data_ptr(), heads, query.stride(0), query.stride(1)),
            *(key.data_ptr(), key.shape[1], key.stride(0), key.stride(1)),
            *(value.data_ptr(), value.stride(0), value.stride(1)),
            *(cos.data_ptr(), sin.data_ptr(), slots.data_ptr(), kept.numbers.data_ptr(), out.data_ptr()),
            *(
                kept.numbers.stride(0),
                cache.shape[-2] * width,
                kept.kind,
                kept.key_scales,
                kept.value_scales,
                threads(),
            ),
        )
        return out

    def add_scaled(self, x: Tensor, scale: Tensor | None, y: Tensor) -> Tensor:
        out = torch.empty(x.shape, dtype=x.dtype)
        self._add_scaled(*_sum(x, scale, y, out), *_sizes(x), threads())
        return out

    def add_rms_norm(
        self, x: Tensor, scale: Tensor | None, y: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        total, out = torch.empty(x.shape, dtype=x.dtype), torch.empty(x.shape, dtype=x.dtype)
        sizes = _sizes(x)
        self._add_rms_norm(*_sum(x, scale, y, total), weight.data_ptr(), out.data_ptr(), *sizes, eps, threads())
        return total, out

    def add_layer_norm(
        self, x: Tensor, scale: Tensor | None, y: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        total, out = torch.empty(x.shape, dtype=x.dtype), torch.empty(x.shape, dtype=x.dtype)
        norm = weight.data_ptr(), bias.data_ptr(), out.data_ptr()
        self._add_layer_norm(*_sum(x, scale, y, total), *norm, *_sizes(x), eps, threads())
        return total, out


def _sum(x: Tensor, scale: Tensor | None, y: Tensor, total: Tensor) -> tuple[int | None, ...]:
    factor = None if scale is None else scale.data_ptr()
    return DTYPES[x.dtype], x.data_ptr(), factor, y.data_ptr(), total.data_ptr()


def _sizes(x: Tensor) -> tuple[int, int]:
    """Return the number of rows and their width."""
    width = x.shape[-1]
    return x.numel() // max(1, width), width


def _place(x: Tensor, rows: Rows) -> tuple[int, ...]:
    return DTYPES[x.dtype], x.data_ptr(), rows.outer, rows.inner, rows.outer_step, rows.inner_step


@dataclass(frozen=True, slots=True)
class Native:
    """The kernels of a shared object. One that is named in `left_out` was wrong when it was tried, or crashed."""

    path: Path
    library: Library
    rows: RowKernels
    attention: AttentionKernels
    matrices: MatrixKernels
    compiler: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path, compiler: str = "", left_out: Mapping[str, str] | None = None) -> Native:
        try:
            library = Library(path)
        except OSError as error:
            raise NoKernels(f"built kernels could not be loaded: {error}") from error
        kernels = RowKernels(library), AttentionKernels(library), MatrixKernels(library)
        return cls(path, library, *kernels, compiler, left_out or {})
