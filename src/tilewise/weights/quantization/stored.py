"""Stored layouts: the tensors that files have for one module, and what all layouts have in common in reading them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tilewise.errors import GET_AGAIN, InvalidCheckpoint
from tilewise.platforms.forms import Codes, Form, Grouped, packed_nibbles

FLOATS = ("BF16", "F16", "F32", "F64")
"""Types of floats as safetensors files spell them."""
MX_BLOCK = 32
"""Inputs that share an exponent in the MX formats (OCP Microscaling v1.0)."""
Shape = Sequence[int | None]
"""A shape in which None is a size that is not known."""


@dataclass(frozen=True, slots=True)
class ExpectedTensor:
    """A tensor as a layout expects it in the files."""

    name: str
    dtypes: Collection[str]
    """Types that are allowed, as safetensors files spell them, the usual one first."""
    shapes: tuple[Shape, ...]
    """Shapes that are allowed, the usual one first."""
    item: int | None = None
    """Index of one of several tensors that are stacked along a first axis, which `shapes` leave out."""

    def fits(self, found: Sequence[int]) -> bool:
        return any(
            len(found) == len(shape) and all(size in (None, here) for size, here in zip(shape, found, strict=True))
            for shape in self.shapes
        )

    def shapes_in_words(self) -> str:
        sizes = (", ".join("any" if size is None else str(size) for size in shape) for shape in self.shapes)
        return " or ".join(f"[{listed}]" for listed in sizes)


class StoredTensors(Protocol):
    """The tensors of a checkpoint, by the names that its files have for them."""

    def has(self, name: str) -> bool: ...

    def place(self, name: str) -> str:
        """Return the file of a tensor, for messages; the folder where no file has it."""
        ...

    def tensor(self, expected: ExpectedTensor) -> Tensor:
        """Return the tensor, or its item, as it is stored. Raises InvalidCheckpoint for any other tensor, or none.

        Without weights at hand, the tensor is meta.
        """
        ...


@dataclass(frozen=True, slots=True)
class StoredModule:
    """The tensors of one module, by the ends of their names behind the module's (`.qweight`)."""

    tensors: StoredTensors
    name: str
    item: int | None = None
    """Index of one of several modules whose tensors are stacked along a first axis."""

    def has(self, end: str) -> bool:
        return self.tensors.has(self.name + end)

    def tensor(self, end: str, shape: Shape, dtypes: Collection[str], *others: Shape) -> Tensor:
        """Return a tensor of this shape or one of the `others`, as `StoredTensors.tensor` does."""
        return self.tensors.tensor(ExpectedTensor(self.name + end, dtypes, (shape, *others), self.item))

    def scales(
        self, end: str, shape: Shape, dtypes: Collection[str] = FLOATS, *others: Shape, of_rows: bool = False
    ) -> Tensor:
        """Return scales as float32, checked as `check_scales` does."""
        return self.check_scales(end, self.tensor(end, shape, dtypes, *others).float(), of_rows)

    def check_scales(self, end: str, scales: Tensor, of_rows: bool = False) -> Tensor:
        """Raise InvalidCheckpoint for a scale that is zero or not finite, or below zero where it is one `of_rows`.

        Scales of weights may be negative: AutoRound gives the lowest code to the number of a group that is largest in
        magnitude, so the scale is negative where that number is positive. Meta tensors pass.
        """
        if scales.is_meta:
            return scales
        wrong = ~(scales.isfinite() & ((scales > 0) if of_rows else (scales != 0)))
        if wrong.any():
            place, allowed = wrong.nonzero()[0].tolist(), "above 0" if of_rows else "not 0"
            found = f"has {scales[wrong][0].item()} at {place}"
            raise self.wrong(end, found, f"scales that are finite and {allowed}")
        return scales

    def wrong(self, end: str, found: str, expected: str) -> InvalidCheckpoint:
        """Return the error for a tensor of which `found` is true ("has shape [3]")."""
        return wrong_tensor(self.tensors, self.name + end, found, expected)


def wrong_tensor(tensors: StoredTensors, name: str, found: str, expected: str) -> InvalidCheckpoint:
    """Return the error for a tensor of which `found` is true ("has shape [3]"), naming its file and the remedy."""
    return InvalidCheckpoint(f"{tensors.place(name)}: the tensor {name} {found}, expected {expected}; {GET_AGAIN}.")


class StoredLayout(ABC):
    """The way in which a linear layer's matrix lies in the files."""

    suffix = ".weight"
    """End of the name of the tensor with the numbers, behind the module's."""
    folds_bias = False
    """True if the form that is read has the bias in it already."""

    @abstractmethod
    def __str__(self) -> str:
        """Return what the log says of it."""

    @abstractmethod
    def read(self, stored: StoredModule, outputs: int | None, inputs: int) -> Form:
        """Read the matrix of a module.

        `outputs` is None where a file keeps several layers as one: all that are there are read. Raises
        InvalidCheckpoint naming tensor, what was found, and what was expected.
        """


Layouts = Callable[[str], StoredLayout | None]
"""Function from a module, by the name that its tensors begin with in the files, to its layout; None = in floats."""


def in_floats(module: str) -> StoredLayout | None:
    """Return None for every module: these are the `Layouts` of a checkpoint that is not quantised."""
    return None


@dataclass(frozen=True, slots=True)
class ScaleBlock:
    """The size of a block in outputs and inputs that shares a scale; None = all of the matrix. Blocks at its ends may
    be smaller."""

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


def bit_fields(packed: Tensor, bits: int) -> Tensor:
    """Split uint8 [..., n] into [..., 8 / bits, n]: `bits` bits of each byte at a time, the lowest first."""
    steps = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return torch.bitwise_and(packed.unsqueeze(-2) >> steps[:, None], 2**bits - 1)


def unpacked(words: Tensor, bits: int, count: int | None = None) -> Tensor:
    """Unpack the first `count` codes of each row of int32 [n, words], or all, to uint8 [n, count].

    Codes follow each other from the lowest bit up, without gaps, also over the ends of words.
    """
    count = words.shape[1] * 32 // bits if count is None else count
    if words.is_meta:
        return torch.empty(len(words), count, dtype=torch.uint8, device="meta")
    stored = words.contiguous().view(torch.uint8)
    if bits == 8:
        return stored[:, :count]
    if 8 % bits == 0:
        return bit_fields(stored, bits).transpose(1, 2).flatten(1)[:, :count]
    # A code of up to 8 bits lies in one byte or in two neighbouring ones: take both, and shift.
    first = torch.arange(count, device=words.device) * bits
    pairs = torch.cat((stored, stored.new_zeros(len(stored), 1)), 1).int()
    pairs = pairs[:, first // 8] | pairs[:, first // 8 + 1] << 8
    codes: Tensor = (pairs >> first % 8) & (2**bits - 1)
    return codes.to(torch.uint8)


def with_middle(numbers: Tensor, bits: int) -> Tensor:
    """Turn int8 into uint8 with 2 ** (bits - 1) added, as packed numbers have it; the sum wraps around at 256."""
    raised: Tensor = numbers.view(torch.uint8) + 2 ** (bits - 1)
    return raised


def grouped(
    codes: Tensor, scales: Tensor, zeros: Tensor | None, group: int, bits: int, order: Tensor | None
) -> Grouped:
    """Return int8 codes as a form, two in a byte where they are small and an even number of them shares a scale."""
    if order is not None and not codes.is_meta:
        codes = codes[:, order]
    halves, shifts = bits <= 4 and not (group % 2 or codes.shape[1] % 2), shifts_of(zeros, scales)
    if zeros is None:
        kind = Codes.INT4 if halves else Codes.INT8
        kept = (codes + 8 if halves else codes).view(torch.uint8)
    else:
        kind = Codes.UINT4 if halves else Codes.UINT8
        kept = with_middle(codes, bits)
    return Grouped(kind, packed_nibbles(kept) if halves else kept, scales, shifts, group, order)


def shifts_of(zeros: Tensor | None, scales: Tensor) -> Tensor | None:
    """Return the shifts for which (code - zero) * scale = code * scale + shift."""
    return None if zeros is None else zeros.float().neg() * scales


def exchanged_halves(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return bytes of the low halves of two tensors of bytes, and of their high halves; those of the first are low.

    So codes of 4 bits go from two outputs of one input a byte to two inputs of one output, none ever in a byte of its
    own.
    """
    return (first & 15) | (second << 4), (first >> 4) | (second & 240)


def powers_of_two(exponents: Tensor) -> Tensor:
    """Return scales float32 of E8M0: uint8 exponents with 127 added."""
    return torch.ldexp(torch.ones_like(exponents, dtype=torch.float32), exponents.int() - 127)


def order_by_group(groups: Tensor, group: int) -> Tensor | None:
    """Return the inputs, whose groups [in] are given, in the order of their groups; None where they are in it already.

    Raises ValueError with the numbers of inputs that groups have, where they are not `group` each.
    """
    groups, usual = groups.long(), torch.arange(len(groups)) // group
    if torch.equal(groups, usual):
        return None
    found, order = groups.sort(stable=True)
    if not torch.equal(found, usual):
        counts = torch.bincount(groups.clamp(0, int(usual[-1]) + 1)).tolist()
        raise ValueError(str(counts)[:40])
    return order
