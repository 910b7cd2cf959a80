"""Names: from the tensor a layer asks for to the one in the file, as data.

Inside Tilewise tensors have one set of names, those of Llama for decoders (`layers.3.self_attn.q_proj.weight`) and
unfused throughout. A checkpoint's names are a `NameTable` away: a row a tensor, layer numbers left as `{}`. Where a
file keeps several of our tensors in one (fused qkv), the row's `Source` says which part is meant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor

from tilewise.platforms.forms import Rows

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""Types as safetensors files spell them."""
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


class Stored(Protocol):
    """A tensor in a file, read only where it is indexed."""

    def get_shape(self) -> list[int]: ...

    def __getitem__(self, index: int | slice) -> Tensor: ...


RowsOf = Callable[[int], Rows]
"""The number of rows that a file keeps together -> which of them are meant. Of another number than expected: all, whose
shape is then reported."""


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of a file, or the part of it that is meant."""

    name: str
    item: int | None = None
    """Which one of several that are stacked along a first axis."""
    transposed: bool = False
    """Stored as [in, out]."""
    rows: RowsOf | None = None
    otherwise: Source | None = None
    """Where other files keep the same tensor."""

    @property
    def module(self) -> str:
        """What the names of the tensors of one layer begin with."""
        return self.name.removesuffix(".weight")

    @property
    def is_whole(self) -> bool:
        """All of a tensor of the file, as it lies there."""
        return self.item is None and not self.transposed and self.rows is None

    def renamed(self, rename: Callable[[str], str]) -> Source:
        otherwise = self.otherwise and self.otherwise.renamed(rename)
        return replace(self, name=rename(self.name), otherwise=otherwise)

    def read(self, stored: Stored) -> Tensor:
        """The part of the stored tensor that is meant, with no more read than it takes."""
        if self.item is None and not self.transposed and self.rows is not None:
            which = self.rows(stored.get_shape()[0])
            return stored[which] if isinstance(which, slice) else stored[:][which]
        found = stored[:] if self.item is None else stored[self.item]
        if self.transposed:
            found = found.transpose(-2, -1)
        return (found if self.rows is None else found[self.rows(len(found))]).contiguous()


def part(index: int, of: int) -> RowsOf:
    """The `index`-th of `of` equal parts stacked along the first axis."""

    def rows(count: int) -> Rows:
        size, rest = divmod(count, of)
        return slice(None) if rest else slice(index * size, (index + 1) * size)

    return rows


def section(sizes: Sequence[int], index: int) -> RowsOf:
    """The `index`-th of parts of unequal sizes, stacked along the first axis."""
    first = sum(sizes[:index])
    return lambda count: slice(first, first + sizes[index]) if count == sum(sizes) else slice(None)


Row = Source | Callable[..., Source]
"""A Source pattern, or what makes one of the numbers in our name."""


@dataclass(frozen=True)
class NameTable:
    """Rows `our pattern -> Source pattern`. A name without a row keeps its own, behind `prefix`."""

    rows: Mapping[str, Row] = field(default_factory=dict)
    prefix: str = ""

    def source(self, name: str) -> Source:
        numbers = _NUMBER.findall(name)
        row = self.rows.get(_NUMBER.sub("{}", name))
        if row is None:
            return Source(self.prefix + name)
        if not isinstance(row, Source):
            row = row(*map(int, numbers))
        return row.renamed(lambda pattern: self.prefix + pattern.format(*numbers))


def rows(pairs: Mapping[str, str], suffixes: tuple[str, ...] = ("weight", "bias")) -> dict[str, Source]:
    """Rows for modules: each pair is renamed with every suffix."""
    return {f"{ours}.{suffix}": Source(f"{theirs}.{suffix}") for ours, theirs in pairs.items() for suffix in suffixes}
