"""RankPlan: what a rank of a layout keeps of a model, and what it computes with it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

from tilewise.capacity.model import PlannedModel
from tilewise.capacity.weights import TOWER_PARTS, Weigher
from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig
from tilewise.layout import Layout
from tilewise.models.config import DecoderConfig, ModelConfig, shared_out
from tilewise.parallel.mesh import Mesh
from tilewise.plan import ModelFacts, with_draft, with_vision_workers
from tilewise.plan.floors import Matrices, RankWork
from tilewise.runner.build import model_facts


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
