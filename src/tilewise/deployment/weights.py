"""Weights of a rank by part of the model, counted over shapes; a layer that is like another is not built again."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from tilewise.models.config import DecoderConfig
from tilewise.models.decoder import Block
from tilewise.models.internvl import InternVL
from tilewise.models.load import Architecture
from tilewise.parallel.mesh import Mesh, Share
from tilewise.plan.floors import Matrices
from tilewise.platforms.base import Ops, Store, Use, Weight
from tilewise.platforms.forms import Dense, Form, Int8
from tilewise.platforms.weights import DenseWeight, as_it_came
from tilewise.runner.build import kept_by
from tilewise.weights.sources import ShapeSource
from tilewise.weights.view import StoredLinear, View

PARTS = ("tower", "projector", "embedding", "head", "attention", "mlp")
_BEGINNINGS = {
    "vision.": "tower",
    "projector.": "projector",
    "flash.": "projector",
    "language.model.embed_tokens.": "embedding",
    "language.model.layers.": "attention",
    "language.": "head",
}
_MLP = ".mlp."


def part_of(name: str) -> str:
    """The part of the model that a tensor or a module belongs to, by its internal name."""
    part = next(part for beginning, part in _BEGINNINGS.items() if name.startswith(beginning))
    return "mlp" if part == "attention" and _MLP in name else part


@dataclass
class Tallies:
    """What was kept so far, by part."""

    store: Store
    rounds: bool
    """Matrices in floats become int8 as they are stored."""
    parts: dict[str, Matrices] = field(default_factory=lambda: dict.fromkeys(PARTS, Matrices()))

    def add(self, part: str, found: Matrices) -> None:
        self.parts[part] += found

    def keep(self, prefix: str, parts: Sequence[Form], bias: Tensor | None, use: Use) -> Weight:
        weight = self.store(parts, bias, use)
        # One that is shared as it is, is the tensor that was counted already.
        taken = 0 if use is Use.SHARED and isinstance(weight, DenseWeight) else weight.nbytes
        numbers = [(form.shape[0] * form.shape[1], self._is_int8(form)) for form in parts]
        floats, int8 = (sum(count for count, found in numbers if found is wanted) for wanted in (False, True))
        self.add(part_of(prefix), Matrices(taken, floats, int8))
        return weight

    def _is_int8(self, form: Form) -> bool:
        return isinstance(form, Int8) or (self.rounds and isinstance(form, Dense))


@dataclass(frozen=True)
class PartsView(View):
    """A view that counts what is read and kept below it."""

    tallies: Tallies = field(default_factory=lambda: Tallies(as_it_came, False))

    def at(self, module: str | int) -> PartsView:
        prefix = f"{self.prefix}{module}."

        def keep(parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
            return self.tallies.keep(prefix, parts, bias, use)

        return replace(self, prefix=prefix, store=keep)

    def tensor(self, name: str, *shape: int, share: Share | None = None) -> Tensor:
        found = super().tensor(name, *shape, share=share)
        self.tallies.add(part_of(self.prefix + name), Matrices(found.nbytes))
        return found


@dataclass(frozen=True)
class Weigher:
    """Counts what ranks keep of a model."""

    architecture: Architecture
    ops: Ops
    dtype: torch.dtype
    quantization: str | None = None
    """int8, fp8: matrices in floats are rounded as they are loaded."""
    alike: bool = False
    """All layers are of one kind, as in files that are yet to be written."""
    layers: dict[Hashable, dict[str, Matrices]] = field(default_factory=dict)
    """What ranks keep of a layer, by rank and kind of layer."""
    ranks: dict[Hashable, dict[str, Matrices]] = field(default_factory=dict)
    _kinds: dict[int, Hashable] = field(default_factory=dict)

    def weigh(self, mesh: Mesh, key: Hashable) -> dict[str, Matrices]:
        """The parts of the rank that has this mesh. Raises InvalidConfig where the model cannot be shared out so.

        Ranks of the same `key` have the same part of a layer, if they have it at all.
        """
        place = (mesh.stage, mesh.rank, mesh.layout)
        if place not in self.ranks:
            self.ranks[place] = self._weighed(mesh, key)
        return self.ranks[place]

    def _weighed(self, mesh: Mesh, key: Hashable) -> dict[str, Matrices]:
        tallies = Tallies(kept_by(self.ops, self.quantization), self.quantization == "int8")
        source = self.architecture.read_as(self._shapes)
        view = PartsView(source, store=tallies.store, tallies=tallies)
        InternVL(view, self.architecture.config, _AlikeBlocks(self, tallies, key), mesh, self.ops, context=1)
        return tallies.parts

    @cached_property
    def parameters(self) -> int:
        """Numbers of the whole model, however they are stored."""
        shapes = replace(self._shapes, parameters=0)
        source = self.architecture.read_as(shapes)
        counted = _CountedBlocks(self, shapes)
        InternVL(View(source), self.architecture.config, counted, Mesh(), self.ops, context=1)
        return shapes.parameters

    def kind(self, layer: int) -> Hashable:
        """Layers of one kind keep the same bytes: the files have each of their matrices in the same layout."""
        if self.architecture.quantized is not None and not self.alike and layer not in self._kinds:
            self._kinds[layer] = tuple(map(self._shapes.layouts, self._named(layer)))
        return self._kinds.get(layer)

    def _named(self, layer: int) -> Sequence[str]:
        """The matrices of a layer by the names that the files have for them: those of the first one, but for the
        number, as finding tens of thousands by the table of names takes seconds."""
        alike = [name.replace(".0.", f".{layer}.", 1) for name in self._first_names]
        if alike[-1] == self._theirs(layer, self._modules[-1]):
            return alike
        return [self._theirs(layer, module) for module in self._modules]

    def _theirs(self, layer: int, module: str) -> str:
        return self._shapes.locate(f"language.model.layers.{layer}.{module}.weight").module

    @cached_property
    def _first_names(self) -> tuple[str, ...]:
        return tuple(self._theirs(0, module) for module in self._modules)

    @cached_property
    def _shapes(self) -> ShapeSource:
        return self.architecture.shapes(self.dtype)

    @cached_property
    def _modules(self) -> tuple[str, ...]:
        """Matrices of a layer, by their names within it."""
        view = _NamingView(self._shapes, "language.model.layers.0.", modules=[])
        self.architecture.backbone.block(view, self.architecture.config.decoder, 0, Mesh())
        return tuple(name.removeprefix(view.prefix) for name in view.modules)


@dataclass(frozen=True)
class _NamingView(View):
    """A view that notes the names of matrices."""

    modules: list[str] = field(default_factory=list)

    def linear(
        self,
        name: str,
        outputs: int,
        inputs: int,
        bias: bool = False,
        output_share: Share | None = None,
        input_share: Share | None = None,
    ) -> StoredLinear:
        self.modules.append(self.prefix + name)
        return super().linear(name, outputs, inputs, bias, output_share, input_share)


class _AlikeBlocks:
    """A `BlockFactory` that builds the first layer of each kind, and counts the others as that one."""

    def __init__(self, weigher: Weigher, tallies: Tallies, key: Hashable) -> None:
        self._weigher, self._tallies, self._key = weigher, tallies, key

    def __call__(self, view: View, config: DecoderConfig, layer: int, mesh: Mesh) -> Block:
        kind, known = (self._key, self._weigher.kind(layer)), self._weigher.layers
        if kind not in known:
            before = dict(self._tallies.parts)
            self._weigher.architecture.backbone.block(view, config, layer, mesh)
            known[kind] = {part: found - before[part] for part, found in self._tallies.parts.items()}
        else:
            for part, found in known[kind].items():
                self._tallies.add(part, found)
        return cast(Block, None)  # which nothing runs


class _CountedBlocks:
    """The same for the parameters of a source of shapes, which do not depend on how layers are stored."""

    def __init__(self, weigher: Weigher, shapes: ShapeSource) -> None:
        self._weigher, self._shapes, self._each = weigher, shapes, 0

    def __call__(self, view: View, config: DecoderConfig, layer: int, mesh: Mesh) -> Block:
        if layer == 0:
            before = self._shapes.parameters
            self._weigher.architecture.backbone.block(view, config, layer, mesh)
            self._each = self._shapes.parameters - before
        else:
            self._shapes.parameters += self._each
        return cast(Block, None)
