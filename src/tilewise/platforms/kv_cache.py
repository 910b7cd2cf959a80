"""A layer's cache of keys and values, floats or numbers of 8 bits with a scale for each token and head, and the places
of a step's tokens in it.

Keys are rounded as they stand after their rotation, values as they come, each token's part of each head by its own
largest number, so that what is written depends on nothing but itself. Shape letters are those of `ops`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_SIZE, BLOCK_SIZES = 16, range(1, 2**16)
"""Tokens of a block unless told otherwise, and those that it may have, where kernels of ours read it."""
KV_DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
"""Dtypes of a quantised cache, by the names that `Limits.kv_cache_dtype` has for them."""
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""Number that the largest of a row becomes, by dtype."""
_LEAST = 1e-30
"""Rows of smaller numbers become zeros."""
_SCALE = torch.float32


@dataclass(frozen=True, slots=True)
class QuantisedCache:
    """A layer's cache in numbers of 8 bits: a key or value is its numbers times their scale."""

    numbers: Tensor
    """int8 or float8_e4m3fn [2, B, P, K, D]."""
    scales: Tensor
    """float32 [2, B, P, K]."""

    @property
    def shape(self) -> torch.Size:
        return self.numbers.shape


LayerCache = Tensor | QuantisedCache
"""A layer's cache [2 (key, value), B, P, K, D]."""


@dataclass(frozen=True, slots=True)
class PagedLayout:
    """The places of the tokens of a batch in their sequences and in the paged cache."""

    query_starts: Tensor
    """int64 [S + 1], the first token of each sequence among the tokens of the step."""
    seq_lens: Tensor
    """int64 [S], the tokens of each sequence after this step."""
    block_table: Tensor
    """int64 [S, blocks], the block ids of each sequence."""
    kv_slots: Tensor
    """int64 [N], the flat cache position of each row: block id * P + offset."""
    token_rows: Tensor | None = None
    """int64 [T], the row of each token of the step; None = they stand in order, without padding."""
    counts: Sequence[int] | None = None
    """Tokens of each sequence in this step, as the host knows them; None = the device has to be asked."""
    lengths: Sequence[int] | None = None
    """`seq_lens`, as the host knows them; None = the device has to be asked, as in a captured step, each replay of
    which has other lengths."""
    longest: int | None = None
    """Upper bound of `seq_lens`, for kernels that read those on the device to prepare for, as they are captured for all
    steps of a size; None = the largest."""
    own_lengths: Sequence[int] | None = None
    """`seq_lens` of this very step, as the host knows them, also where `lengths` is None: for kernels whose graphs are
    told the lengths of each replay."""

    @property
    def host_counts(self) -> Sequence[int]:
        if self.counts is not None:
            return self.counts
        found: list[int] = self.query_starts.diff().tolist()
        return found

    @property
    def most_tokens(self) -> int:
        """Upper bound of the tokens of a sequence."""
        return max(self.host_lengths) if self.longest is None else self.longest

    @property
    def host_lengths(self) -> Sequence[int]:
        if self.lengths is not None:
            return self.lengths
        found: list[int] = self.seq_lens.tolist()
        return found


def kept_dtype(kv_cache_dtype: str | None, dtype: torch.dtype) -> torch.dtype:
    """Return `Limits.kv_cache_dtype` as torch has it; None stands for `dtype`, in which the model computes."""
    return dtype if kv_cache_dtype is None else KV_DTYPES[kv_cache_dtype]


def empty_cache(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> LayerCache:
    """Make an uninitialised cache [2, B, P, K, D] of floats of `dtype`, or a quantised one if it is in `KV_DTYPES`."""
    numbers = torch.empty(shape, dtype=dtype, device=device)
    if dtype not in LARGEST:
        return numbers
    return QuantisedCache(numbers, torch.empty(shape[:-1], dtype=_SCALE, device=device))


def bytes_per_head(width: int, dtype: torch.dtype) -> int:
    """Return the bytes that a token's key or value of one head takes, its scale included."""
    return width * dtype.itemsize + (_SCALE.itemsize if dtype in LARGEST else 0)


def quantise(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round [..., D] half to even -> numbers of `dtype` [..., D] and float32 scales [...]."""
    x = x.float()
    largest = x.abs().amax(-1, keepdim=True).clamp(min=_LEAST)
    # Tensor by tensor, which is a division; with a number torch multiplies by its reciprocal.
    most = torch.full_like(largest, LARGEST[dtype])
    numbers = (x * (most / largest)).clamp(-LARGEST[dtype], LARGEST[dtype])
    numbers = numbers.to(dtype) if dtype.is_floating_point else numbers.round().to(dtype)
    return numbers, (largest / most).squeeze(-1)


def write_rows(cache: LayerCache, slots: Tensor, key: Tensor, value: Tensor) -> None:
    """Write keys and values [N, K, D] to the flat positions `slots` [N] of a cache."""
    for number, rows in enumerate((key, value)):
        if isinstance(cache, Tensor):
            cache[number].view(-1, *rows.shape[1:]).index_copy_(0, slots, rows)
            continue
        rounded, scales = quantise(rows, cache.numbers.dtype)
        # As bytes, since torch moves no rows of float8 on the CPU.
        numbers = cache.numbers[number].view(torch.int8).view(-1, *rows.shape[1:])
        numbers.index_copy_(0, slots, rounded.view(torch.int8))
        cache.scales[number].view(-1, rows.shape[1]).index_copy_(0, slots, scales)


def read_blocks(cache: LayerCache, blocks: Tensor, dtype: torch.dtype) -> Tensor:
    """Read blocks [n] of a cache, one behind the other -> [2, n * P, K, D] in `dtype`."""
    if isinstance(cache, Tensor):
        return cache[:, blocks].flatten(1, 2)
    numbers = cache.numbers.view(torch.int8)[:, blocks].view(cache.numbers.dtype)
    return (numbers.float() * cache.scales[:, blocks].unsqueeze(-1)).to(dtype).flatten(1, 2)
