"""How a kernel is called: its signature, and the arguments that every kernel has."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_TYPES: dict[str, Any] = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float}

DTYPES = {torch.float32: 0, torch.bfloat16: 1}
"""As `src/simd.h` numbers them."""


Launch = Callable[[], object]
"""A call of a kernel with all its arguments."""


class _Record(threading.local):
    launches: list[Launch] | None = None


class Library:
    """Functions of a shared object by name. Launches can be written down, those of one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._shared = ctypes.CDLL(str(path))
        self._record = _Record()

    def kernel(self, name: str, signature: str) -> Callable[..., None]:
        """What computes; a letter for each argument: pointer, int64, float."""
        found, record = self._function(name, signature, None), self._record

        def launch(*arguments: Any) -> None:
            found(*arguments)
            if record.launches is not None:
                record.launches.append(partial(found, *arguments))

        return launch

    def size(self, name: str, signature: str) -> Callable[..., int]:
        """What says how much memory a kernel needs."""
        return self._function(name, signature, ctypes.c_int64)

    def _function(self, name: str, signature: str, returns: Any) -> Callable[..., Any]:
        found = self._shared[name]
        found.argtypes = [_TYPES[letter] for letter in signature]
        found.restype = returns
        return found

    @contextmanager
    def recorded(self) -> Iterator[list[Launch]]:
        """What this thread launches meanwhile, which is computed as well."""
        launches: list[Launch] = []
        self._record.launches = launches
        try:
            yield launches
        finally:
            self._record.launches = None


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
