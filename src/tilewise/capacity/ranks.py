"""The part of a model that a rank of a layout keeps, counted over shapes by part, and what it computes with it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch

from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig
from tilewise.layout import Layout
from tilewise.models.config import DecoderConfig, ModelConfig, shared_out
from tilewise.models.decoder import BlockFactory, DecoderLayer, InternVL
from tilewise.models.load import TOWER_PARTS, Architecture, PartsView
from tilewise.parallel.mesh import Mesh
from tilewise.plan.floors import Matrices, RankWork
from tilewise.plan.memory import ModelFacts, with_draft, with_vision_workers
from tilewise.platforms.ops import Ops
from tilewise.runner.build import model_facts, weight_store
from tilewise.weights.sources import ShapeSource
from tilewise.weights.view import StoredLinear, View

if TYPE_CHECKING:
    from tilewise.capacity.model import PlannedModel


@dataclass(frozen=True)
class Weigher:
    """Counts what ranks keep of a model."""

    architecture: Architecture
    ops: Ops
    dtype: torch.dtype
    quantization: str | None = None
    """Scheme, int8 or fp8, by which matrices in floats are rounded as they are loaded; None = they are not."""
    alike: bool = False
    """True if all layers are of one kind, as in files that are yet to be written."""
    layers: dict[Hashable, dict[str, Matrices]] = field(default_factory=dict)
    """Matrices that a rank keeps of a layer, by the rank's key and the layer's kind."""
    ranks: dict[Hashable, dict[str, Matrices]] = field(default_factory=dict)
    _kinds: dict[int, Hashable] = field(default_factory=dict)

    def weigh(self, mesh: Mesh, key: Hashable) -> dict[str, Matrices]:
        """Return what the rank of a mesh keeps, by part. Raises InvalidConfig where the model cannot be shared out so.

        `key` identifies the shard: ranks with equal keys keep the same slice of every layer they have, so each kind of
        layer is built once per key.
        """
        place = (mesh.stage, mesh.rank, mesh.layout)
        if place not in self.ranks:
            store, rounds = weight_store(self.ops, self.quantization), self.quantization == "int8"
            kept = (self.ops, self.dtype, store, mesh, rounds)
            self.ranks[place] = self.architecture.weigh(*kept, self._alike_blocks(key), self._shapes)
        return self.ranks[place]

    def _alike_blocks(self, key: Hashable) -> BlockFactory:
        """Return a factory that builds the first layer of each kind, and counts the others as that one."""

        def count(view: View, config: DecoderConfig, layer: int, mesh: Mesh) -> DecoderLayer:
            assert isinstance(view, PartsView)
            kind, sums = (key, self.kind(layer)), view.sums
            if kind in self.layers:
                for part, found in self.layers[kind].items():
                    sums.add(part, found)
            else:
                before = dict(sums.parts)
                self.architecture.backbone.block(view, config, layer, mesh)
                self.layers[kind] = {part: found - before[part] for part, found in sums.parts.items()}
            return cast(DecoderLayer, None)  # which nothing runs

        return count

    @cached_property
    def parameters(self) -> int:
        """Numbers of the whole model, however they are stored; each of its layers has as many."""
        one, two = map(self._parameters_with, (1, 2))
        return one + (self.architecture.config.decoder.num_layers - 1) * (two - one)

    def _parameters_with(self, layers: int) -> int:
        config, shapes = self.architecture.config, replace(self._shapes, parameters=0)
        shortened = replace(config, decoder=replace(config.decoder, num_layers=layers))
        view = View(self.architecture.read_as(shapes))
        InternVL(view, shortened, self.architecture.backbone.block, Mesh(), self.ops, context=1)
        return shapes.parameters

    def kind(self, layer: int) -> Hashable:
        """Return the kind of a layer. Layers of one kind, whose matrices are stored alike, keep the same bytes."""
        if self.architecture.quantized is not None and not self.alike and layer not in self._kinds:
            self._kinds[layer] = tuple(map(self._shapes.layouts, self._named(layer)))
        return self._kinds.get(layer)

    def _named(self, layer: int) -> Sequence[str]:
        """Return the names that the files have for the matrices of a layer.

        They are those of the first layer but for the number, if the last one of them is: to look up tens of thousands
        in the table of names takes seconds.
        """
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
        """Names of a layer's matrices within the layer."""
        view = _NamingView(self._shapes, "language.model.layers.0.", modules=[])
        self.architecture.backbone.block(view, self.architecture.config.decoder, 0, Mesh())
        return tuple(name.removeprefix(view.prefix) for name in view.modules)


@dataclass(frozen=True)
class _NamingView(View):
    """A view that notes the names of matrices."""

    modules: list[str] = field(default_factory=list)

    def linear(self, name: str, *sizes: Any, **shares: Any) -> StoredLinear:
        self.modules.append(self.prefix + name)
        return super().linear(name, *sizes, **shares)


def rank_mesh(layout: Layout, rank: int) -> Mesh:
    """Return the mesh of a rank that is only counted; replicas are all alike, so it has one."""
    return Mesh.at(replace(layout, data=1), rank)


def can_be_shared(decoder: DecoderConfig, layout: Layout) -> bool:
    """Return whether a decoder's heads, inputs and layers can be shared out so."""
    try:
        for rank in (0, layout.ranks - 1):
            shared_out(decoder, rank_mesh(layout, rank))
    except InvalidConfig:
        return False
    return True


@dataclass(frozen=True)
class RankPlan:
    """The part of a model that one rank keeps, and the work that it does with it."""

    rank: int
    parts: dict[str, Matrices]
    facts: ModelFacts
    work: RankWork

    @property
    def draft_bytes(self) -> int:
        """Bytes of a draft model's weights."""
        return self.facts.weight_bytes - sum(part.bytes for part in self.parts.values())


def plan_rank(model: PlannedModel, layout: Layout, rank: int) -> RankPlan:
    """Plan a rank. Raises InvalidConfig where the model cannot be shared out so."""
    mesh, key = rank_mesh(layout, rank), (layout.tensor, rank % layout.tensor, layout.experts)
    parts, facts = _counted(model.weigher, model.config, mesh, key)
    work = _work(model.sizes, mesh, parts, facts)
    if model.draft is not None:
        facts = with_draft(facts, _counted(model.draft, model.config, mesh, key)[1])
    if workers := model.config.vision_workers:
        facts = with_vision_workers(facts, workers, sum(parts[name].bytes for name in TOWER_PARTS))
        parts = parts | {name: replace(parts[name], bytes=workers * parts[name].bytes) for name in TOWER_PARTS}
    return RankPlan(rank, parts, facts, work)


def _counted(
    weigher: Weigher, config: EngineConfig, mesh: Mesh, key: Hashable
) -> tuple[dict[str, Matrices], ModelFacts]:
    parts = weigher.weigh(mesh, key)
    total = sum(part.bytes for part in parts.values())
    asked = (weigher.dtype, weigher.ops, weigher.quantization, config.quantised_kv)
    return parts, model_facts(weigher.architecture, *asked, mesh, total)


def _work(sizes: ModelConfig, mesh: Mesh, parts: dict[str, Matrices], facts: ModelFacts) -> RankWork:
    decoder, vision = shared_out(sizes.decoder, mesh), sizes.vision
    # In a model with attention windows, every other layer has one, beginning with the first.
    here = mesh.layers(sizes.decoder.num_layers)
    sliding = sum(layer % 2 == 0 for layer in here) if decoder.window is not None else 0
    experts = sizes.decoder.experts
    return RankWork(
        parts=parts,
        tile_tokens=(sizes.tile_size // vision.patch_size) ** 2 + 1,
        tile_rows=sizes.tokens_per_tile,
        tower_width=vision.hidden_size // mesh.tower.size * vision.num_layers,
        query_width=decoder.num_heads * decoder.head_dim,
        full_layers=len(here) - sliding,
        window_layers=sliding,
        window=decoder.window or 0,
        kv_bytes_per_token=facts.kv_bytes_per_token,
        experts=None if experts is None else (experts.count, experts.per_token),
    )
