"""What kernels can read, and the arguments that all of them have."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tilewise.platforms.kv_cache import LayerCache, QuantisedCache

DTYPES = {torch.float32: 0, torch.bfloat16: 1}
"""As `src/simd.h` numbers them."""
_KEPT = {torch.int8: 1, torch.float8_e4m3fn: 2}


# Both are asked before each of some hundred kernels a token: loops take half as long as `all` of a generator.


def readable(*tensors: Tensor) -> bool:
    """Whether kernels can read all of them: one dtype that they know, rows without gaps in them, memory on the host."""
    dtype = tensors[0].dtype
    for x in tensors:
        if x.dtype != dtype or not x.is_cpu or (x.stride(-1) != 1 and x.shape[-1] != 1):
            return False
    return dtype in DTYPES


def gapless(*tensors: Tensor) -> bool:
    """The same of tensors that have no gaps at all."""
    dtype = tensors[0].dtype
    for x in tensors:
        if x.dtype != dtype or not x.is_cpu or not x.is_contiguous():
            return False
    return dtype in DTYPES


def readable_cache(cache: LayerCache, dtype: torch.dtype) -> bool:
    """Whether kernels can read and write a cache for rows of a dtype."""
    if isinstance(cache, QuantisedCache):
        return cache.numbers.is_cpu and cache.numbers.is_contiguous() and cache.scales.is_contiguous()
    return cache.dtype == dtype and cache.is_cpu and cache.is_contiguous()


@dataclass(frozen=True, slots=True)
class KeptRows:
    """Where a cache of keys and values has its numbers, and its scales if there are any."""

    kind: int
    """As `src/simd.h` numbers what a cache keeps; 0 = the dtype of the rows."""
    numbers: Tensor
    key_scales: int | None = None
    value_scales: int | None = None
    """Addresses."""

    @classmethod
    def of(cls, cache: LayerCache) -> KeptRows:
        if not isinstance(cache, QuantisedCache):
            return cls(0, cache)
        keys, scales = cache.scales.data_ptr(), cache.scales
        return cls(_KEPT[cache.numbers.dtype], cache.numbers, keys, keys + scales.stride(0) * scales.element_size())


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the rows of x [..., width] are: row (i, k) starts i * outer_step + k * inner_step numbers behind the first.

    Parts of one product, such as the queries of all tokens and heads, are read where they are.
    """

    outer: int
    inner: int
    outer_step: int
    inner_step: int

    @classmethod
    def of(cls, x: Tensor) -> Rows | None:
        """None if it takes more than two steps."""
        steps: list[tuple[int, int]] = []
        for size, step in zip(x.shape[:-1], x.stride()[:-1], strict=True):
            if steps and size > 1 and steps[-1][1] == size * step:
                steps[-1] = (steps[-1][0] * size, step)
            elif size != 1:
                steps.append((size, step))
        if len(steps) > 2:
            return None
        (outer, outer_step), (inner, inner_step) = [*[(1, 0)] * (2 - len(steps)), *steps]
        return cls(outer, inner, outer_step, inner_step)


def threads() -> int:
    """As many as torch's own ops take; OpenMP would not know in a thread that has not computed yet."""
    return torch.get_num_threads()
