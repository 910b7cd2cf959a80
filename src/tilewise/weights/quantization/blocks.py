"""Blocks: which part of a matrix shares a scale. By tensor, by channel and in groups are blocks of other sizes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tilewise.weights.quantization import FLOATS, StoredTensors
from tilewise.weights.quantization.checks import checked_scales


@dataclass(frozen=True, slots=True)
class Block:
    """A size in outputs and inputs; None = all that the matrix has. Those at its ends may be smaller."""

    outputs: int | None
    inputs: int | None

    def __str__(self) -> str:
        match self:
            case Block(None, None):
                return "by tensor"
            case Block(1, None):
                return "by channel"
            case Block(1, size):
                return f"in groups of {size}"
        return f"in blocks of {self.outputs or 'all'} x {self.inputs or 'all'}"

    def counts(self, outputs: int, inputs: int) -> tuple[int, int]:
        """How many blocks a matrix has, one below the other and side by side."""
        return -(-outputs // (self.outputs or outputs)), -(-inputs // (self.inputs or inputs))

    def shapes(self, outputs: int, inputs: int) -> list[tuple[int, ...]]:
        """Shapes that a tensor with one value for each block may have, the usual one first: ends of size 1 may lack."""
        rows, columns = self.counts(outputs, inputs)
        match rows, columns:
            case 1, 1 if self.outputs is None:
                return [(1,), (), (1, 1)]
            case _, 1:
                return [(rows, 1), (rows,)]
        return [(rows, columns)]

    def of_each_output(self, values: Tensor, outputs: int, inputs: int) -> Tensor:
        """One value for each block -> [outputs, blocks side by side]."""
        values = values.reshape(self.counts(outputs, inputs))
        if self.outputs == 1:
            return values
        return values.repeat_interleave(self.outputs or outputs, 0)[:outputs]

    def scales(self, tensors: StoredTensors, name: str, outputs: int, inputs: int, item: int | None) -> Tensor:
        """The stored scales of a matrix, float32 [outputs, blocks side by side]. Raises InvalidCheckpoint."""
        usual, *others = self.shapes(outputs, inputs)
        stored = tensors.tensor(name, usual, FLOATS, item, others)
        checked_scales(tensors, name, stored)
        return self.of_each_output(stored.float(), outputs, inputs)
