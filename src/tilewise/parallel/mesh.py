"""Mesh: how many ranks share the model, and which one this is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from tilewise.errors import InvalidConfig


class Share(NamedTuple):
    """Part of an axis: `length` entries from `start` on."""

    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Mesh:
    """Tensor parallelism over `size` ranks. One rank is the whole model; more need a collective backend."""

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if self.size != 1:
            raise InvalidConfig(f"tensor_parallel_size={self.size}: this platform has one device; use 1.")

    def share(self, total: int, what: str) -> Share:
        """This rank's part of `total` things that must divide evenly."""
        if total % self.size:
            raise InvalidConfig(
                f"Total number of {what} ({total}) must be divisible by tensor parallel size ({self.size})."
            )
        length = total // self.size
        return Share(self.rank * length, length)

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over ranks; of one rank, itself."""
        return x
