"""Names: from the tensor a layer asks for to the one in the file, as data.

Inside Tilewise tensors have one set of names, those of Llama for decoders (`layers.3.self_attn.q_proj.weight`) and
unfused throughout. A checkpoint's names are a `NameTable` away: a row a tensor, layer numbers left as `{}`. Where a
file keeps several of our tensors in one (fused qkv), the row's `TensorRef` says which part is meant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor

from tilewise.platforms.forms import Rows

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


class Stored(Protocol):
    """A tensor in a file, read only where it is indexed."""

    def get_shape(self) -> list[int]: ...

    def __getitem__(self, index: int | slice) -> Tensor: ...


RowSelector = Callable[[int], Rows]
"""Function from the number of rows that a file keeps together to the rows that are meant. Where that number is not the
expected one, it gives all rows, whose shape is then reported."""


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor of a file, or the part of it that is meant."""

    name: str
    item: int | None = None
    """Index of one of several tensors that are stacked along a first axis."""
    transposed: bool = False
    """True if it is stored as [in, out]."""
    rows: RowSelector | None = None
    otherwise: TensorRef | None = None
    """Place of the same tensor in checkpoints that do not have this one."""

    @property
    def module(self) -> str:
        """Beginning of the names of all tensors of the layer."""
        return self.name.removesuffix(".weight")

    @property
    def is_whole(self) -> bool:
        """True if all of a tensor of the file is meant, as it lies there."""
        return self.item is None and not self.transposed and self.rows is None

    def places(self) -> Iterator[TensorRef]:
        """Yield every place that the tensor may have, the usual one first."""
        yield self
        if self.otherwise is not None:
            yield from self.otherwise.places()

    def renamed(self, rename: Callable[[str], str]) -> TensorRef:
        otherwise = self.otherwise and self.otherwise.renamed(rename)
        return replace(self, name=rename(self.name), otherwise=otherwise)

    def read(self, stored: Stored) -> Tensor:
        """Return the part of the stored tensor that is meant, reading no more than it takes."""
        if self.item is None and not self.transposed and self.rows is not None:
            which = self.rows(stored.get_shape()[0])
            return stored[which] if isinstance(which, slice) else stored[:][which]
        found = stored[:] if self.item is None else stored[self.item]
        if self.transposed:
            found = found.transpose(-2, -1)
        return (found if self.rows is None else found[self.rows(len(found))]).contiguous()


def part(index: int, of: int) -> RowSelector:
    """Return the rows of the `index`-th of `of` equal parts stacked along the first axis."""

    def rows(count: int) -> Rows:
        size, rest = divmod(count, of)
        return slice(None) if rest else slice(index * size, (index + 1) * size)

    return rows


def section(sizes: Sequence[int], index: int) -> RowSelector:
    """Return the rows of the `index`-th of parts of unequal sizes, stacked along the first axis."""
    first = sum(sizes[:index])
    return lambda count: slice(first, first + sizes[index]) if count == sum(sizes) else slice(None)


Row = TensorRef | Callable[..., TensorRef]
"""A pattern of a TensorRef, or a function that makes one of the numbers in the internal name."""


@dataclass(frozen=True)
class NameTable:
    """A table from patterns of internal names to patterns of `TensorRef`.

    A name without a row stays as it is, behind `prefix`.
    """

    rows: Mapping[str, Row] = field(default_factory=dict)
    prefix: str = ""

    def source(self, name: str) -> TensorRef:
        numbers = _NUMBER.findall(name)
        row = self.rows.get(pattern_of(name))
        if row is None:
            return TensorRef(self.prefix + name)
        if not isinstance(row, TensorRef):
            row = row(*map(int, numbers))
        return row.renamed(lambda pattern: self.prefix + pattern.format(*numbers))


def pattern_of(name: str) -> str:
    """Return a name with `{}` in the place of each number between dots."""
    return _NUMBER.sub("{}", name)


def rows(pairs: Mapping[str, str]) -> dict[str, TensorRef]:
    """Return rows for modules, each with weight and bias; `pairs` are internal names and those in the files."""
    kinds = ("weight", "bias")
    return {f"{ours}.{kind}": TensorRef(f"{theirs}.{kind}") for ours, theirs in pairs.items() for kind in kinds}
