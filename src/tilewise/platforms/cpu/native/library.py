"""The shared object as Python sees it: functions by name, tensors by address, and memory that stays in its place.

Functions take plain integers. Whoever calls has seen to it that dtypes and strides are what a kernel reads.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tilewise.platforms.kv_cache import LayerCache, QuantisedCache


@dataclass(slots=True)
class _Block:
    memory: Tensor
    lent: weakref.ref[memoryview] | None = None
    """Reference to a buffer that lives as long as a tensor of this memory, or a view of one; None = never lent."""

    @property
    def free(self) -> bool:
        return self.lent is None or self.lent() is None

    def lend(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        memory = self.memory.numpy().data
        self.lent = weakref.ref(memory)
        return torch.frombuffer(memory, dtype=dtype, count=prod(shape)).view(shape)


class Arena:
    """Memory for the tensors that captured steps make. A block goes back by itself, with the last tensor over it; as
    many are kept as were ever lent at once.
    """

    def __init__(self) -> None:
        self._blocks: list[_Block] = []

    @property
    def nbytes(self) -> int:
        return sum(block.memory.nbytes for block in self._blocks)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return an uninitialised tensor of this shape, of at least one number."""
        size = prod(shape) * dtype.itemsize
        fitting = (block for block in self._blocks if block.free and block.memory.nbytes >= size)
        block = min(fitting, key=lambda block: block.memory.nbytes, default=None)
        if block is None:
            block = _Block(torch.empty(size, dtype=torch.uint8))
            self._blocks.append(block)
        return block.lend(shape, dtype)


_TYPES: dict[str, Any] = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float}

Launch = Callable[[], object]
"""A call of a kernel with all its arguments."""


class _Record(threading.local):
    launches: list[Launch] | None = None


class Library:
    """The functions of a shared object by name. Launches can be recorded, by each thread for itself."""

    def __init__(self, path: Path) -> None:
        self._shared = ctypes.CDLL(str(path))
        self._record = _Record()

    def kernel(self, name: str, signature: str) -> Callable[..., None]:
        """Return a function that computes; the signature has a letter for each argument: pointer, int64, float."""
        found, record = self._function(name, signature, None), self._record

        def launch(*arguments: Any) -> None:
            found(*arguments)
            if record.launches is not None:
                record.launches.append(partial(found, *arguments))

        return launch

    def size(self, name: str, signature: str) -> Callable[..., int]:
        """Return a function that tells a number, such as how much memory a kernel needs."""
        return self._function(name, signature, ctypes.c_int64)

    def _function(self, name: str, signature: str, returns: Any) -> Callable[..., Any]:
        found = self._shared[name]
        found.argtypes = [_TYPES[letter] for letter in signature]
        found.restype = returns
        return found

    @contextmanager
    def recorded(self) -> Iterator[list[Launch]]:
        """Record what this thread launches meanwhile, which is computed as well."""
        launches: list[Launch] = []
        self._record.launches = launches
        try:
            yield launches
        finally:
            self._record.launches = None


DTYPES = {torch.float32: 0, torch.bfloat16: 1}
"""Dtypes that kernels know, as `src/simd.h` numbers them."""
_KEPT = {torch.int8: 1, torch.float8_e4m3fn: 2}
"""Dtypes of a quantised cache, as `src/simd.h` numbers them."""


# The next two are asked before each of some hundred kernels a token: loops take half as long as `all` of a generator.


def readable(*tensors: Tensor) -> bool:
    """Return whether kernels can read all tensors: one dtype that they know, rows without gaps, memory on the host."""
    dtype = tensors[0].dtype
    for x in tensors:
        if x.dtype != dtype or not x.is_cpu or (x.stride(-1) != 1 and x.shape[-1] != 1):
            return False
    return dtype in DTYPES


def gapless(*tensors: Tensor) -> bool:
    """Return whether kernels can read all tensors, and none has gaps between its rows either."""
    dtype = tensors[0].dtype
    for x in tensors:
        if x.dtype != dtype or not x.is_cpu or not x.is_contiguous():
            return False
    return dtype in DTYPES


def readable_cache(cache: LayerCache, dtype: torch.dtype) -> bool:
    """Return whether kernels can read and write a cache for rows of a dtype."""
    if isinstance(cache, QuantisedCache):
        return cache.numbers.is_cpu and cache.numbers.is_contiguous() and cache.scales.is_contiguous()
    return cache.dtype == dtype and cache.is_cpu and cache.is_contiguous()


@dataclass(frozen=True, slots=True)
class KeptRows:
    """The numbers of a cache of keys and values, and the places of its scales if there are any."""

    kind: int
    """Dtype that the cache keeps, as `src/simd.h` numbers it; 0 = the dtype of the rows."""
    numbers: Tensor
    key_scales: int | None = None
    value_scales: int | None = None
    """Addresses of the scales of keys and of values; None = there are none."""

    @classmethod
    def of(cls, cache: LayerCache) -> KeptRows:
        if not isinstance(cache, QuantisedCache):
            return cls(0, cache)
        keys, scales = cache.scales.data_ptr(), cache.scales
        return cls(_KEPT[cache.numbers.dtype], cache.numbers, keys, keys + scales.stride(0) * scales.element_size())


@dataclass(frozen=True, slots=True)
class Rows:
    """The places of the rows of x [..., width]: row (i, k) starts i * outer_step + k * inner_step numbers behind the
    first.

    So parts of one product, such as the queries of all tokens and heads, are read where they are.
    """

    outer: int
    inner: int
    outer_step: int
    inner_step: int

    @classmethod
    def of(cls, x: Tensor) -> Rows | None:
        """Return the places of x's rows; None if it takes more than two steps to tell them."""
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
    """Return as many threads as torch's own ops take; OpenMP would not know in a thread that has not computed yet."""
    return torch.get_num_threads()
