"""`Native`: the kernels of a shared object by name, and what tells whether they can read a tensor where it is.

Kernels take plain integers and addresses. Whoever launches one has seen to it that dtypes and strides are what it
reads.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tilewise.platforms.cpu.native import NoKernels
from tilewise.platforms.kv_cache import LayerCache, QuantisedCache
from tilewise.platforms.strides import row_steps

_TYPES: dict[str, Any] = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float}
_KERNELS = {
    "rms_norm": "ipiiiippif",
    "layer_norm": "ipiiiipppif",
    "silu_mul": "ippii",
    "gelu": "ippi",
    "rope_into_cache": "iii" + "piii" * 2 + "pii" + "pppppii" + "ipp",
    "add_scaled": "ippppii",
    "add_rms_norm": "ipppp" + "ppiif",
    "add_layer_norm": "ipppp" + "pppiif",
    "dense_attention": "ippppp" + "iiiiifp",
    "paged_attention": "ippppp" + "ipppiiiiifippi",
    "quantised_paged_attention": "iippppppp" + "ipppiiiiifippi",
    "pack_linear": "ipiiiip",
    "linear": "ipiipppii",
    "pack_int8": "ipiiiippp",
    "linear_int8": "ipiipppppiifip",
    "pack_levels": "piiiipp",
    "pack_grouped": "iiiiiipppp",
    "linear_grouped": "ipiiiiiiippppii",
}
"""Arguments of each kernel but its last one, the number of threads, a letter each: pointer, int64, float."""
_NUMBERS = {
    "products_by": "",
    "padded_inputs": "ii",
    "grouped_bytes": "iiiiii",
    "attention_scratch": "i",
    "attention_room": "iiii",
}
"""Arguments of the functions that compute nothing, and return an int64."""
_INSTRUCTIONS = ("AVX2", "AVX-512", "AVX-512 with dot products", "AMX", "AVX-512, as the system refuses AMX")
"""Names of instructions, as `products_by` in `src/linear.cpp` numbers them."""

Launch = Callable[[], object]
"""A call of a kernel with all its arguments."""


class _Record(threading.local):
    launches: list[Launch] | None = None


class Native:
    """The kernels of a shared object. One that is named in `left_out` was wrong when it was tried, or crashed.

    Launches can be recorded, by each thread for itself.
    """

    def __init__(self, path: Path, compiler: str = "", left_out: Mapping[str, str] | None = None) -> None:
        """Load a shared object. Raises NoKernels."""
        self.path, self.compiler, self.left_out = path, compiler, left_out or {}
        self._record = _Record()
        try:
            shared = ctypes.CDLL(str(path))
        except OSError as error:
            raise NoKernels(f"built kernels could not be loaded: {error}") from error
        self._kernels = {name: _function(shared, name, f"{types}i", None) for name, types in _KERNELS.items()}
        self._numbers = {name: _function(shared, name, types, ctypes.c_int64) for name, types in _NUMBERS.items()}

    @property
    def instructions(self) -> str:
        """Name of the instructions that products are computed by."""
        return _INSTRUCTIONS[self.number("products_by")]

    def has(self, name: str) -> bool:
        return name not in self.left_out

    def launch(self, name: str, *arguments: Any) -> None:
        """Compute by a kernel, on as many threads as torch's own ops take.

        OpenMP would not know their number in a thread that has not computed yet.
        """
        call = partial(self._kernels[name], *arguments, torch.get_num_threads())
        call()
        if self._record.launches is not None:
            self._record.launches.append(call)

    def number(self, name: str, *arguments: int) -> int:
        """Return a number of the library's, such as how much memory a kernel needs."""
        found: int = self._numbers[name](*arguments)
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


def _function(shared: ctypes.CDLL, name: str, types: str, returns: Any) -> Callable[..., Any]:
    found = shared[name]
    found.argtypes = [_TYPES[letter] for letter in types]
    found.restype = returns
    return found


DTYPES = {torch.float32: 0, torch.bfloat16: 1}
"""Dtypes that kernels know, as `src/simd.h` numbers them."""
_KEPT = {torch.int8: 1, torch.float8_e4m3fn: 2}
"""Dtypes of a quantised cache, as `src/simd.h` numbers them."""


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def rows_and_width(x: Tensor) -> tuple[int, int]:
    width = x.shape[-1]
    return x.numel() // max(1, width), width


# The next two are asked before each of some hundred kernels a token: loops take half as long as `all` of a generator.


def readable(*tensors: Tensor) -> bool:
    """Return whether kernels can read all tensors: one dtype that they know, rows without gaps, memory on the host."""
    dtype = tensors[0].dtype
    for x in tensors:
        if x.dtype != dtype or not x.is_cpu or (x.stride(-1) != 1 and x.shape[-1] != 1):
            return False
    return dtype in DTYPES


def gapless(*tensors: Tensor | None) -> bool:
    """Return whether kernels can read all tensors that are given, and none has gaps between its rows either."""
    first = tensors[0]
    assert first is not None
    for x in tensors:
        if x is not None and (x.dtype != first.dtype or not x.is_cpu or not x.is_contiguous()):
            return False
    return first.dtype in DTYPES


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


class Rows(NamedTuple):
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
        steps = row_steps(x)
        if len(steps) > 2:
            return None
        (outer, outer_step), (inner, inner_step) = [*[(1, 0)] * (2 - len(steps)), *steps]
        return cls(outer, inner, outer_step, inner_step)
