"""Views: where modules pull their weights from while they are built.

Building a model is loading it. The same code over `CheckpointSource` reads files, over `RandomSource` makes test
models and `--load-format dummy`, over `ShapeSource` only counts, which tells what a model needs before any download.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from tilewise.errors import InvalidCheckpoint
from tilewise.parallel.mesh import Share
from tilewise.weights.files import SafetensorFiles
from tilewise.weights.names import Source

_FLOATS = {"F64", "F32", "F16", "BF16"}
# Tensors that old training code saved and that follow from the config.
_DERIVED = re.compile(r"\.rotary_emb\.inv_freq$|\.position_ids$")


class TensorSource(Protocol):
    """Whoever can produce a tensor by its internal name."""

    dtype: torch.dtype

    def has(self, name: str) -> bool: ...

    def read(self, name: str, shape: Sequence[int]) -> Tensor:
        """The whole tensor, which has to have this shape, in `dtype`."""
        ...


@dataclass(frozen=True)
class View:
    """A source seen from one module: names are relative to `prefix`."""

    source: TensorSource
    prefix: str = ""

    def at(self, module: str | int) -> View:
        return View(self.source, f"{self.prefix}{module}.")

    def has(self, name: str) -> bool:
        return self.source.has(self.prefix + name)

    def tensor(self, name: str, *shape: int, dim: int = 0, share: Share | None = None) -> Tensor:
        """A tensor of the given full shape, or this rank's share of it along `dim`."""
        whole = self.source.read(self.prefix + name, shape)
        if share is None or share.length == shape[dim]:
            return whole
        return whole.narrow(dim, share.start, share.length).contiguous()


@dataclass
class CheckpointSource:
    """Tensors of files, under the names that `locate` finds them by."""

    files: SafetensorFiles
    locate: Callable[[str], Source]
    dtype: torch.dtype
    device: torch.device = torch.device("cpu")
    on_read: Callable[[int], None] = lambda _: None
    """Told the bytes of each tensor as it is read."""
    _unread: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self._unread = set(self.files.names)

    def has(self, name: str) -> bool:
        return self.locate(name).name in self.files.names

    def read(self, name: str, shape: Sequence[int]) -> Tensor:
        source = self.locate(name)
        if source.name not in self.files.names:
            raise InvalidCheckpoint(
                f"{self.files.folder} has no tensor {source.name}, which the model needs as {name}."
            )
        found = self.files.dtype(source.name)
        if found not in _FLOATS:
            raise InvalidCheckpoint(
                f"The tensor {source.name} is of type {found}, expected one of {', '.join(sorted(_FLOATS))}: "
                "this is a quantised checkpoint of a form that is not supported."
            )
        select = source.select
        tensor = select(self.files.stored(source.name)) if select else self.files.tensor(source.name)
        self._unread.discard(source.name)
        if math.prod(tensor.shape) != math.prod(shape) or list(tensor.shape)[-1:] != list(shape)[-1:]:
            raise InvalidCheckpoint(
                f"The tensor {source.name} has shape {list(tensor.shape)}, the config asks for {list(shape)}."
            )
        self.on_read(tensor.nbytes)
        return tensor.reshape(*shape).to(self.device, self.dtype)

    def finish(self) -> None:
        """Raise InvalidCheckpoint when the files hold tensors that no module asked for."""
        left = sorted(name for name in self._unread if not _DERIVED.search(name))
        if left:
            shown = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
            raise InvalidCheckpoint(f"The model has no place for these tensors of the checkpoint: {shown}.")


@dataclass
class RandomSource:
    """Reproducible noise: each tensor depends on seed and name alone, so two builds agree."""

    dtype: torch.dtype
    device: torch.device = torch.device("cpu")
    seed: int = 0
    scale: float = 0.02
    absent: frozenset[str] = frozenset()

    def has(self, name: str) -> bool:
        return name not in self.absent

    def read(self, name: str, shape: Sequence[int]) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + zlib.crc32(name.encode()))
        noise = torch.randn(*shape, generator=generator) * self.scale
        return (noise + 1 if "norm" in name and name.endswith("weight") else noise).to(self.device, self.dtype)


@dataclass
class ShapeSource:
    """Shapes without data: `parameters` counts what a model of this config has."""

    dtype: torch.dtype
    parameters: int = 0
    absent: frozenset[str] = frozenset()

    def has(self, name: str) -> bool:
        return name not in self.absent

    def read(self, name: str, shape: Sequence[int]) -> Tensor:
        self.parameters += math.prod(shape)
        return torch.empty(*shape, dtype=self.dtype, device="meta")
