"""A captured step: the launches of its kernels with all their arguments, to be launched again.

A step of a few tokens is some hundred kernels of microseconds, and as much Python around each. That Python asks
tensors for shapes and addresses alone, so the same kernels compute the step anew when other numbers stand in the
tensors that it reads. Whatever else it might do, such as to compute by torch or to look at a number, could not be
repeated: it is refused.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tilewise.platforms.base import NotCapturable
from tilewise.platforms.cpu.native.kernels import Launch, Native
from tilewise.platforms.kv_cache import PagedLayout

_QUESTIONS = {
    *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "is_cpu", "nbytes")),
    *(getattr(Tensor, name) for name in ("size", "stride", "dim", "numel", "data_ptr", "element_size", "__len__")),
    Tensor.is_contiguous,
}
"""Functions that tell of a tensor what stays the same in all replays."""
_VIEWS = {Tensor.split, Tensor.view, Tensor.flatten, Tensor.unflatten, Tensor.contiguous, Tensor.__getitem__}
"""Functions that may give a view, which sees new numbers by itself, or a copy, which does not."""


@dataclass(slots=True)
class _Block:
    memory: Tensor
    lent: weakref.ref[memoryview] | None = None
    """Reference to a buffer that lives as long as a tensor of this memory, or a view of one; None = never lent."""

    @property
    def free(self) -> bool:
        return self.lent is None or self.lent() is None

    def lend(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        # Each call makes a new view of the buffer. The tensor made of it and all views of that tensor share a storage,
        # which keeps this object alive, and lets it go with the last of them: then the weak reference is dead.
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


@dataclass(frozen=True, slots=True)
class CapturedStep:
    launches: tuple[Launch, ...]
    result: Tensor

    @property
    def first(self) -> Tensor:
        return self.result

    def replay(self, layout: PagedLayout | None = None) -> Tensor:
        for launch in self.launches:
            launch()
        return self.result


def capture(native: Native, arena: Arena, step: Callable[[], Tensor]) -> CapturedStep:
    """Run a step for the first time, and keep its launches.

    Memory between its kernels is the arena's: steps share it, as one runs at a time. What the step reads has to stay
    where it is. Raises NotCapturable, when part of the step may have run.
    """
    with native.recorded() as launches, _Watched(arena, launches):
        result = step()
    return CapturedStep(tuple(launches), result)


class _Watched(TorchFunctionMode):
    """A mode of torch that sees all calls of it, and refuses those that a replay could not repeat."""

    def __init__(self, arena: Arena, launches: list[Launch]) -> None:
        super().__init__()
        self._arena = arena
        self._launches = launches

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            return self._empty(*args, **kwargs)
        found = func(*args, **kwargs)
        if func is torch.index_select:  # the one op of torch that is launched again, into the same result
            self._launches.append(partial(func, *args, **kwargs, out=found))
        elif func in _VIEWS:
            _same_memory(args[0], found)
        elif func not in _QUESTIONS:
            raise NotCapturable(f"it needs {getattr(func, '__name__', func)} of torch")
        return found

    def _empty(self, *size: Any, dtype: torch.dtype | None = None) -> Tensor:
        shape = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else size
        return self._arena.empty(shape, dtype or torch.get_default_dtype())


def _same_memory(x: Tensor, found: Any) -> None:
    """Raise NotCapturable if a view has become a copy, since a replay would not make it again from new numbers."""
    for view in found if isinstance(found, tuple | list) else (found,):
        if view.untyped_storage().data_ptr() != x.untyped_storage().data_ptr():
            raise NotCapturable("it copies a tensor")
