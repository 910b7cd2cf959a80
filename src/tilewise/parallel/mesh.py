"""Mesh: which ranks share the tensors of a model, and which of them this is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from tilewise.errors import InvalidConfig


class Share(NamedTuple):
    """Part of an axis: `length` entries from `start` on."""

    start: int
    length: int

    def of(self, width: int) -> Share:
        """This part, counted on an axis on which each entry is `width` wide."""
        return Share(self.start * width, self.length * width)


class Collectives(Protocol):
    """Moves tensors between ranks, which all call the same, in the same order, with tensors of one shape and dtype."""

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all ranks, the same bits on each; `x` may be overwritten."""
        ...

    def gather(self, x: Tensor) -> list[Tensor]:
        """Every rank's tensor, in the order of the ranks."""
        ...

    def from_first(self, x: Tensor) -> Tensor:
        """The first rank's tensor; `x` may be overwritten."""
        ...


@dataclass(frozen=True, slots=True)
class Mesh:
    """Tensor parallelism: each of `size` ranks has some heads, inputs or outputs of every layer.

    One rank is the whole model, and needs no `collectives`.
    """

    rank: int = 0
    size: int = 1
    collectives: Collectives | None = None

    def __post_init__(self) -> None:
        if self.size > 1 and self.collectives is None:
            raise InvalidConfig(f"tensor_parallel_size={self.size}: this platform has one device; use 1.")

    def share(self, total: int, what: str) -> Share:
        """This rank's part of `total` things that must divide evenly."""
        if total % self.size:
            raise InvalidConfig(
                f"Total number of {what} ({total}) must be divisible by tensor parallel size ({self.size})."
            )
        length = total // self.size
        return Share(self.rank * length, length)

    def heads(self, queries: int, keys: int) -> tuple[Share, Share]:
        """This rank's query heads, and the key/value heads that they read.

        Where there are more ranks than key/value heads, several ranks have the same one.
        """
        own = self.share(queries, "attention heads")
        if keys % self.size == 0:
            return own, self.share(keys, "key/value heads")
        if self.size % keys:
            raise InvalidConfig(
                f"Key/value heads ({keys}) and tensor parallel size ({self.size}) must divide one another."
            )
        return own, Share(self.rank * keys // self.size, 1)

    def rows(self, total: int) -> Share:
        """This rank's part of rows that need not divide: all ranks have as many, but for the last ones."""
        length = -(-total // self.size)
        start = min(self.rank * length, total)
        return Share(start, min(length, total - start))

    def sum(self, x: Tensor) -> Tensor:
        """The sum over ranks; of one rank, itself."""
        return x if self.collectives is None else self.collectives.sum(x)

    def gathered(self, x: Tensor, total: int) -> Tensor:
        """[..., this rank's of `rows(total)`] -> [..., total]"""
        if self.collectives is None:
            return x
        length = -(-total // self.size)
        filled = x.new_zeros(*x.shape[:-1], length)
        filled[..., : x.shape[-1]] = x
        whole: Tensor = x.new_empty(*x.shape[:-1], self.size * length)
        for rank, part in enumerate(self.gather(filled)):
            whole[..., rank * length : (rank + 1) * length] = part
        return whole[..., :total].contiguous()

    def gather(self, x: Tensor) -> list[Tensor]:
        """Every rank's tensor, of one shape, in the order of the ranks."""
        return [x] if self.collectives is None else self.collectives.gather(x)

    def from_first(self, x: Tensor) -> Tensor:
        """The first rank's tensor, on all ranks."""
        return x if self.collectives is None else self.collectives.from_first(x)
