"""Mesh: which ranks share a model, which of them this is, and what it has of the model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from tilewise.errors import InvalidConfig
from tilewise.layout import Layout

if TYPE_CHECKING:
    from tilewise.parallel.ranks import Collectives, Pipeline

T = TypeVar("T")


class Share(NamedTuple):
    """Part of an axis: `length` entries from `start` on."""

    start: int
    length: int

    def of(self, width: int) -> Share:
        """Return this part, counted on an axis on which each entry is `width` wide."""
        return Share(self.start * width, self.length * width)


@dataclass(frozen=True, slots=True)
class Mesh:
    """The place of a rank in a layout, and its part of the model; it is number `rank` of the ranks of its stage.

    Without `collectives` and `pipeline`, a mesh of several ranks can only tell what each of them has, over shapes.
    """

    rank: int = 0
    layout: Layout = Layout()
    collectives: Collectives | None = None
    stage: int = 0
    pipeline: Pipeline | None = None

    @classmethod
    def at(
        cls,
        layout: Layout,
        number: int,
        collectives: Collectives | None = None,
        pipeline: Pipeline | None = None,
    ) -> Mesh:
        """Return the place of a replica's rank of this number; they are numbered stage by stage."""
        stage, rank = divmod(number, layout.tensor)
        return cls(rank, layout, collectives, stage, pipeline)

    @property
    def size(self) -> int:
        """Ranks of a stage, each of which has some heads, inputs or outputs of every layer."""
        return self.layout.tensor

    @property
    def is_first_stage(self) -> bool:
        """True if this rank's stage has the tower and the embedding."""
        return self.stage == 0

    @property
    def is_last_stage(self) -> bool:
        """True if this rank's stage has the head; its first rank chooses tokens."""
        return self.stage == self.layout.pipeline - 1

    @property
    def tower(self) -> Mesh:
        """The mesh of the ranks that share the weights of the tower: this one alone, unless the layout says so."""
        return Mesh(self.rank, Layout(self.size), self.collectives) if self.layout.tower == "weights" else Mesh()

    @property
    def encoders(self) -> int:
        """Ranks of the first stage that encode different tiles."""
        return 1 if self.layout.tower == "weights" else self.size

    def layers(self, total: int) -> range:
        """Return the decoder layers of this rank's stage."""
        return self.layout.layers(self.stage, total)

    def experts(self, total: int) -> tuple[int, ...] | None:
        """Return the experts that this rank has whole; None = it has a part of every one."""
        return self.layout.experts_of(self.rank, total) if self.layout.experts else None

    def share(self, total: int, what: str) -> Share:
        """Return this rank's part of `total` things. Raises InvalidConfig unless they divide evenly."""
        if total % self.size:
            raise InvalidConfig(
                f"Total number of {what} ({total}) must be divisible by tensor parallel size ({self.size}): take "
                f"{_listed(size for size in range(1, total + 1) if total % size == 0)}."
            )
        length = total // self.size
        return Share(self.rank * length, length)

    def heads(self, queries: int, keys: int) -> tuple[Share, Share]:
        """Return this rank's query heads, and the key/value heads that they read.

        Where there are more ranks than key/value heads, several ranks have the same one. Raises InvalidConfig where
        neither number divides the other.
        """
        own = self.share(queries, "attention heads")
        if keys % self.size == 0:
            return own, self.share(keys, "key/value heads")
        if self.size % keys:
            raise InvalidConfig(
                f"Key/value heads ({keys}) and tensor parallel size ({self.size}) must divide one another: take "
                f"{_listed(size for size in range(1, queries + 1) if not queries % size and _divide(size, keys))}."
            )
        return own, Share(self.rank * keys // self.size, 1)

    def rows(self, total: int) -> Share:
        """Return this rank's part of rows that need not divide: all ranks have as many, but for the last ones."""
        length = -(-total // self.size)
        start = min(self.rank * length, total)
        return Share(start, min(length, total - start))

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum over ranks; of one rank, `x` itself."""
        return x if self.collectives is None else self.collectives.sum(x)

    def spreads(self, rows: int) -> bool:
        """Return whether a pass over so many rows spreads them over the ranks of a stage between products."""
        least = self.layout.spread_rows
        return least is not None and rows >= least and self.collectives is not None

    def own_rows(self, x: Tensor) -> Tensor:
        """Return this rank's share of the rows [N, ...], as many on each rank: zeros follow the last ones."""
        each = -(-len(x) // self.size)
        return self._filled(x, each).narrow(0, self.rank * each, each)

    def all_rows(self, x: Tensor, total: int) -> Tensor:
        """Gather all rows, of which there are `total`, from the share of each rank."""
        return torch.cat(self.gather(x.contiguous()))[:total]

    def sum_own_rows(self, x: Tensor) -> Tensor:
        """Sum [N, ...] over ranks, and return this rank's share of the rows."""
        assert self.collectives is not None
        return self.collectives.sum_own(self._filled(x, -(-len(x) // self.size)))

    def _filled(self, x: Tensor, each: int) -> Tensor:
        missing = each * self.size - len(x)
        return torch.cat((x, x.new_zeros(missing, *x.shape[1:]))) if missing else x

    def gathered(self, x: Tensor, total: int) -> Tensor:
        """Put the parts of all ranks together: [..., this rank's of `rows(total)`] -> [..., total]."""
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
        """Return every rank's tensor, of one shape, in the order of the ranks."""
        return [x] if self.collectives is None else self.collectives.gather(x)

    def from_first(self, x: Tensor) -> Tensor:
        """Return the first rank's tensor, on all ranks."""
        return x if self.collectives is None else self.collectives.from_first(x)

    def from_last_stage(self, x: Tensor) -> Tensor:
        """Return the tensor of the last stage's first rank, on all ranks; `x` of the others is ignored."""
        return self.from_first(x) if self.pipeline is None else self.pipeline.from_last(x)

    def object_from_last_stage(self, data: T) -> T:
        """Return the plain data that the last stage's first rank gives, on all ranks of a pipeline."""
        return data if self.pipeline is None else cast(T, self.pipeline.object_from_last(data))


def _divide(a: int, b: int) -> bool:
    return a % b == 0 or b % a == 0


def _listed(sizes: Iterable[int]) -> str:
    """Return sizes as a user may choose among them; a machine has no more than 64 devices."""
    fit = [str(size) for size in sizes if size <= 64]
    return fit[0] if len(fit) == 1 else f"{', '.join(fit[:-1])} or {fit[-1]}"
