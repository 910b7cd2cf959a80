"""Views: where modules pull their weights from while they are built.

Building a model is loading it. The same code over `CheckpointSource` reads files, over `RandomSource` makes test
models and `--load-format dummy`, over `ShapeSource` only counts, which tells what a model needs before any download.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from tilewise.parallel.mesh import Share
from tilewise.platforms.forms import Dense, Form, Rows, stacked
from tilewise.platforms.weights import Store, as_it_came


@dataclass(frozen=True, slots=True)
class StoredLinear:
    """The matrix of a linear layer, in the form in which it is stored, and its bias [out]."""

    matrix: Form
    bias: Tensor | None

    def rows(self, which: Rows) -> StoredLinear:
        return StoredLinear(self.matrix.rows(which), None if self.bias is None else self.bias[which])

    def columns(self, share: Share) -> StoredLinear:
        """Return some of the inputs. The bias stays with the first share, since partial sums are added up."""
        return StoredLinear(self.matrix.columns(share.start, share.length), None if share.start else self.bias)


class TensorSource(Protocol):
    """Anything that gives tensors and matrices by their internal names."""

    @property
    def dtype(self) -> torch.dtype: ...

    def has(self, name: str) -> bool: ...

    def read(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return the whole tensor, which has to have this shape, in `dtype`."""
        ...

    def linear(self, module: str, outputs: int, inputs: int, bias: bool) -> StoredLinear:
        """Return the matrix of a module as it is stored. Files may have a bias that the config does not ask for."""
        ...


class SourceOver:
    """The base of sources that read from another one, and change something about it."""

    source: TensorSource

    @property
    def dtype(self) -> torch.dtype:
        return self.source.dtype

    def has(self, name: str) -> bool:
        return self.source.has(name)

    def read(self, name: str, shape: Sequence[int]) -> Tensor:
        return self.source.read(name, shape)

    def linear(self, module: str, outputs: int, inputs: int, bias: bool) -> StoredLinear:
        return self.source.linear(module, outputs, inputs, bias)


@dataclass(frozen=True)
class View:
    """A source seen from one module: names are relative to `prefix`.

    `store` turns a matrix that only multiplies into the form in which it is kept; what is read by rows stays a tensor.
    """

    source: TensorSource
    prefix: str = ""
    store: Store = as_it_came

    def at(self, module: str | int) -> View:
        return replace(self, prefix=f"{self.prefix}{module}.")

    def has(self, name: str) -> bool:
        return self.source.has(self.prefix + name)

    def tensor(self, name: str, *shape: int, share: Share | None = None) -> Tensor:
        """Return a tensor of the given full shape, or this rank's share of it along its first axis."""
        whole = self.source.read(self.prefix + name, shape)
        if share is None or share.length == shape[0]:
            return whole
        return whole.narrow(0, share.start, share.length).contiguous()

    def convolution(self, name: str, *shape: int) -> StoredLinear:
        """Return a convolution [out, ...] whose patches do not overlap, as the linear layer that it is."""
        matrix = self.source.read(f"{self.prefix}{name}.weight", shape).reshape(shape[0], -1)
        return StoredLinear(Dense(matrix), self.source.read(f"{self.prefix}{name}.bias", shape[:1]))

    def linear(
        self,
        name: str,
        outputs: int,
        inputs: int,
        bias: bool = False,
        output_share: Share | None = None,
        input_share: Share | None = None,
    ) -> StoredLinear:
        """Return a linear layer of the given full size, or this rank's share of its outputs or inputs."""
        found = self.source.linear(self.prefix + name, outputs, inputs, bias)
        if output_share is not None and output_share.length != outputs:
            found = found.rows(slice(output_share.start, output_share.start + output_share.length))
        if input_share is not None and input_share.length != inputs:
            found = found.columns(input_share)
        return found


def combined(parts: Sequence[StoredLinear]) -> tuple[list[Form], Tensor | None]:
    """Combine layers that read the same input, for a `Store`: matrices one below the other, and one bias."""
    given = next((part.bias for part in parts if part.bias is not None), None)
    if given is None:
        return [part.matrix for part in parts], None
    biases = [given.new_zeros(part.matrix.shape[0]) if part.bias is None else part.bias for part in parts]
    return [part.matrix for part in parts], stacked(biases)
