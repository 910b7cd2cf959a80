"""The shared object as Python sees it: functions by name, tensors by address; and what was launched, on request.

Functions take plain integers. Whoever calls has seen to it that dtypes and strides are what a kernel reads.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

_TYPES: dict[str, Any] = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float}

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
