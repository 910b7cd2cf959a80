"""Blocks of a matrix that share a scale, and checks of the scales that are stored."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tilewise.errors import GET_AGAIN, InvalidCheckpoint
from tilewise.weights.quantization import FLOATS, StoredTensors


@dataclass(frozen=True, slots=True)
class ScaleBlock:
    """The size of a block in outputs and inputs; None = all of the matrix. Blocks at its ends may be smaller."""

    outputs: int | None
    inputs: int | None

    def __str__(self) -> str:
        match self:
            case ScaleBlock(None, None):
                return "by tensor"
            case ScaleBlock(1, None):
                return "by channel"
            case ScaleBlock(1, size):
                return f"in groups of {size}"
        return f"in blocks of {self.outputs or 'all'} x {self.inputs or 'all'}"

    def counts(self, outputs: int, inputs: int) -> tuple[int, int]:
        """Return how many blocks a matrix has, one below the other and side by side."""
        return -(-outputs // (self.outputs or outputs)), -(-inputs // (self.inputs or inputs))

    def shapes(self, outputs: int, inputs: int) -> list[tuple[int, ...]]:
        """Return the shapes of a tensor with one value a block, the usual one first: axes of size 1 may be left out."""
        rows, columns = self.counts(outputs, inputs)
        match rows, columns:
            case 1, 1 if self.outputs is None:
                return [(1,), (), (1, 1)]
            case _, 1:
                return [(rows, 1), (rows,)]
        return [(rows, columns)]

    def of_each_output(self, values: Tensor, outputs: int, inputs: int) -> Tensor:
        """Turn one value for each block into [outputs, blocks side by side]."""
        values = values.reshape(self.counts(outputs, inputs))
        if self.outputs == 1:
            return values
        return values.repeat_interleave(self.outputs or outputs, 0)[:outputs]

    def scales(self, tensors: StoredTensors, name: str, outputs: int, inputs: int, item: int | None) -> Tensor:
        """Read the scales of a matrix as float32 [outputs, blocks side by side]. Raises InvalidCheckpoint."""
        usual, *others = self.shapes(outputs, inputs)
        stored = tensors.tensor(name, usual, FLOATS, item, others)
        check_scales(tensors, name, stored)
        return self.of_each_output(stored.float(), outputs, inputs)


def wrong_tensor(tensors: StoredTensors, name: str, found: str, expected: str) -> InvalidCheckpoint:
    """Return the error for a tensor of which `found` is true ("has shape [3]"), naming its file and the remedy."""
    return InvalidCheckpoint(f"{tensors.place(name)}: the tensor {name} {found}, expected {expected}; {GET_AGAIN}.")


def check_scales(tensors: StoredTensors, name: str, scales: Tensor, of_rows: bool = False) -> None:
    """Raise InvalidCheckpoint for a scale that is zero or not finite, or below zero where it is one `of_rows`.

    Scales of weights may be negative: AutoRound gives the lowest code to the number of a group that is largest in
    magnitude, so the scale is negative where that number is positive. Meta tensors pass.
    """
    if scales.is_meta:
        return
    wrong = ~(scales.isfinite() & ((scales > 0) if of_rows else (scales != 0)))
    if wrong.any():
        place, allowed = wrong.nonzero()[0].tolist(), "above 0" if of_rows else "not 0"
        found = f"has {scales[wrong][0].item()} at {place}"
        raise wrong_tensor(tensors, name, found, f"scales that are finite and {allowed}")
