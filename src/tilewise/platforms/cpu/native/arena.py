"""Arena: memory that steps use again and again, at the same addresses."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor


@dataclass(slots=True)
class _Block:
    memory: Tensor
    lent: weakref.ref[memoryview] | None = None
    """Lives as long as a tensor of this memory, or a view of one."""

    @property
    def free(self) -> bool:
        return self.lent is None or self.lent() is None

    def lend(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        memory = self.memory.numpy().data
        self.lent = weakref.ref(memory)
        return torch.frombuffer(memory, dtype=dtype, count=prod(shape)).view(shape)


class Arena:
    """Blocks go back by themselves, with the last tensor over them. It keeps as many as were ever lent at once."""

    def __init__(self) -> None:
        self._blocks: list[_Block] = []

    @property
    def nbytes(self) -> int:
        return sum(block.memory.nbytes for block in self._blocks)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Uninitialised, [shape], of at least one number."""
        size = prod(shape) * dtype.itemsize
        fitting = (block for block in self._blocks if block.free and block.memory.nbytes >= size)
        block = min(fitting, key=lambda block: block.memory.nbytes, default=None)
        if block is None:
            block = _Block(torch.empty(size, dtype=torch.uint8))
            self._blocks.append(block)
        return block.lend(shape, dtype)
