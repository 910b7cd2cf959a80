"""Views: where modules pull their weights from while they are built.

Building a model is loading it. The same code over `CheckpointSource` reads files, over `RandomSource` makes test
models and `--load-format dummy`, over `ShapeSource` only counts, which tells what a model needs before any download.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from tilewise.errors import InvalidCheckpoint
from tilewise.parallel.mesh import Share
from tilewise.platforms.base import Store, Weight
from tilewise.platforms.weights import as_it_came
from tilewise.weights.files import SafetensorFiles
from tilewise.weights.names import Source, stack

# Tensors that may be left unread: what old training code saved though it follows from the config, and the router of a
# Flash model, which can be switched off and of whose four pooling stages two are never used.
_DISPENSABLE = re.compile(r"\.rotary_emb\.inv_freq$|\.position_ids$|^(mlp2|gating|pooling_before_gating)\.")


class TensorSource(Protocol):
    """Whoever can produce a tensor by its internal name."""

    @property
    def dtype(self) -> torch.dtype: ...

    def has(self, name: str) -> bool: ...

    def read(self, name: str, shape: Sequence[int]) -> Tensor:
        """The whole tensor, which has to have this shape, in `dtype`."""
        ...


@dataclass(frozen=True)
class View:
    """A source seen from one module: names are relative to `prefix`.

    `store` turns a matrix that only multiplies into the form in which it is kept; what is read by rows stays a tensor.
    """

    source: TensorSource
    prefix: str = ""
    store: Store = as_it_came

    def at(self, module: str | int) -> View:
        return View(self.source, f"{self.prefix}{module}.", self.store)

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
    _in_memory: list[str] = field(default_factory=list)
    _stored: bool = False
    """Whether something was stored since those were read."""

    def __post_init__(self) -> None:
        self._unread = set(self.files.names)

    def has(self, name: str) -> bool:
        return self._find(name) is not None

    def read(self, name: str, shape: Sequence[int]) -> Tensor:
        source = self._find(name)
        if source is None:
            raise InvalidCheckpoint(
                f"{self.files.folder} has no tensor {self._missing(name)}, which the model needs as {name}."
            )
        self._check_types(source)
        if source.select is stack:
            self._check_equal_shapes(source)
        if source.select:
            tensor = source.select(*map(self.files.stored, source.names))
        else:
            tensor = self.files.tensor(source.name)
        self._unread.difference_update(source.names)
        if math.prod(tensor.shape) != math.prod(shape) or list(tensor.shape)[-1:] != list(shape)[-1:]:
            raise InvalidCheckpoint(
                f"The tensor {source.name} has shape {list(tensor.shape)}, the config asks for {list(shape)}."
            )
        if self._stored:
            self._in_memory.clear()
        self._in_memory += source.names
        self._stored = False
        self.on_read(tensor.nbytes)
        return tensor.reshape(*shape).to(self.device, self.dtype)

    def giving_back(self, store: Store) -> Store:
        """The same store, after which what was read for it no longer takes memory.

        Where the mapped tensor itself is kept, its pages come back as they are touched.
        """

        def stored(parts: Sequence[Tensor], bias: Tensor | None, shared: bool = False) -> Weight:
            weight = store(parts, bias, shared)
            for name in self._in_memory:  # again behind the next one: experts are read together, and stored one by one
                self.files.give_back(name)
            self._stored = True
            return weight

        return stored

    def _find(self, name: str) -> Source | None:
        """The form of a tensor that the files hold, all parts of it."""
        source: Source | None = self.locate(name)
        while source is not None and not self.files.names.issuperset(source.names):
            source = source.otherwise
        return source

    def _missing(self, name: str) -> str:
        """The first absent part of a tensor's likeliest form: one that is there in part, else the usual one."""
        forms = [self.locate(name)]
        while (other := forms[-1].otherwise) is not None:
            forms.append(other)
        begun = [form for form in forms if not self.files.names.isdisjoint(form.names)]
        form = (begun or forms)[0]
        return next(part for part in form.names if part not in self.files.names)

    def _check_equal_shapes(self, source: Source) -> None:
        shapes = {name: tuple(self.files.stored(name).get_shape()) for name in source.names}
        usual = Counter(shapes.values()).most_common(1)[0][0]
        for name, shape in shapes.items():
            if shape != usual:
                raise InvalidCheckpoint(f"The tensor {name} has shape {list(shape)}, its siblings {list(usual)}.")

    def _check_types(self, source: Source) -> None:
        for name in source.names:
            found = self.files.dtype(name)
            if found not in source.dtypes:
                raise InvalidCheckpoint(
                    f"The tensor {name} is of type {found}, expected one of {', '.join(sorted(source.dtypes))}: "
                    "this is a quantised checkpoint of a form that is not supported."
                )

    def finish(self) -> None:
        """Raise InvalidCheckpoint when the files hold tensors that no module asked for."""
        left = sorted(name for name in self._unread if not _DISPENSABLE.search(name))
        if left:
            shown = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
            raise InvalidCheckpoint(f"The model has no place for these tensors of the checkpoint: {shown}.")


@dataclass(frozen=True)
class WatchedSource:
    """Another source, each of whose tensors is shown to `watch` under its internal name as it is read."""

    source: TensorSource
    watch: Callable[[str, Tensor], None]

    @property
    def dtype(self) -> torch.dtype:
        return self.source.dtype

    def has(self, name: str) -> bool:
        return self.source.has(name)

    def read(self, name: str, shape: Sequence[int]) -> Tensor:
        tensor = self.source.read(name, shape)
        self.watch(name, tensor)
        return tensor


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
