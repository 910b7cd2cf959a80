"""Names: from the tensor a layer asks for to the one in the file, as data.

Inside Tilewise tensors have one set of names, those of Llama for decoders (`layers.3.self_attn.q_proj.weight`) and
unfused throughout. A checkpoint's names are a `NameTable` away: a row a tensor, layer numbers left as `{}`. Where a
file keeps several of our tensors in one (fused qkv), the row's `Source` says which part is meant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


class Stored(Protocol):
    """A tensor in a file, read only where it is indexed."""

    def get_shape(self) -> list[int]: ...

    def __getitem__(self, index: slice) -> Tensor: ...


Select = Callable[[Stored], Tensor]


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of a file, or the part of it that `select` reads."""

    name: str
    select: Select | None = None


def part(index: int, of: int) -> Select:
    """Rows of the `index`-th of `of` equal parts stacked along the first axis."""

    def read(stored: Stored) -> Tensor:
        rows, rest = divmod(stored.get_shape()[0], of)
        if rest:
            return stored[:]  # whole, whose shape is then reported
        return stored[index * rows : (index + 1) * rows]

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
        return replace(row, name=self.prefix + row.name.format(*numbers))


def rows(pairs: Mapping[str, str], suffixes: tuple[str, ...] = ("weight", "bias")) -> dict[str, Source]:
    """Rows for modules: each pair is renamed with every suffix."""
    return {f"{ours}.{suffix}": Source(f"{theirs}.{suffix}") for ours, theirs in pairs.items() for suffix in suffixes}
