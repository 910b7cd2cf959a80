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

import torch
from torch import Tensor

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""Types as safetensors files spell them."""
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


class Stored(Protocol):
    """A tensor in a file, read only where it is indexed."""

    def get_shape(self) -> list[int]: ...

    def __getitem__(self, index: slice) -> Tensor: ...


Select = Callable[..., Tensor]
"""The stored tensors that a Source names -> the tensor meant."""


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of a file, or what `select` makes of it and, where it needs several, of `others`."""

    name: str
    select: Select | None = None
    others: tuple[str, ...] = ()
    dtypes: frozenset[str] = FLOATS
    otherwise: Source | None = None
    """The other form that some files keep this tensor in."""

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.others)

    def renamed(self, rename: Callable[[str], str]) -> Source:
        otherwise = self.otherwise and self.otherwise.renamed(rename)
        return replace(self, name=rename(self.name), others=tuple(map(rename, self.others)), otherwise=otherwise)


def stack(*stored: Stored) -> Tensor:
    """One tensor on top of the other, along a new first axis."""
    return torch.stack([item[:] for item in stored])


def part(index: int, of: int) -> Select:
    """Rows of the `index`-th of `of` equal parts stacked along the first axis."""

    def read(stored: Stored) -> Tensor:
        size, rest = divmod(stored.get_shape()[0], of)
        if rest:
            return stored[:]  # whole, whose shape is then reported
        return stored[index * size : (index + 1) * size]

    return read


def section(sizes: Sequence[int], index: int) -> Select:
    """Rows of the `index`-th of parts of unequal sizes, stacked along the first axis."""
    first = sum(sizes[:index])

    def read(stored: Stored) -> Tensor:
        if stored.get_shape()[0] != sum(sizes):
            return stored[:]  # whole, whose shape is then reported
        return stored[first : first + sizes[index]]

    return read


@dataclass(frozen=True)
class NameTable:
    """Rows `our pattern -> Source pattern`. A name without a row keeps its own, behind `prefix`."""

    rows: Mapping[str, Source] = field(default_factory=dict)
    prefix: str = ""

    def source(self, name: str) -> Source:
        numbers = _NUMBER.findall(name)
        row = self.rows.get(_NUMBER.sub("{}", name))
        if row is None:
            return Source(self.prefix + name)
        return row.renamed(lambda pattern: self.prefix + pattern.format(*numbers))


def rows(pairs: Mapping[str, str], suffixes: tuple[str, ...] = ("weight", "bias")) -> dict[str, Source]:
    """Rows for modules: each pair is renamed with every suffix."""
    return {f"{ours}.{suffix}": Source(f"{theirs}.{suffix}") for ours, theirs in pairs.items() for suffix in suffixes}
