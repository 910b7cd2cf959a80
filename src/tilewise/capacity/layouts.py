"""A layout's plan: whether it fits, how much it holds at once, and how fast it can be at most."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

from tilewise.capacity.model import PlannedModel
from tilewise.capacity.ranks import RankPlan, can_be_shared, plan_rank
from tilewise.config import EngineConfig
from tilewise.environment import Environment
from tilewise.errors import InvalidConfig
from tilewise.layout import Layout
from tilewise.plan import planned_memory
from tilewise.plan.floors import StageWork
from tilewise.plan.memory import DeviceFacts, MemoryPlan, largest
from tilewise.plan.request import Device, Devices, RequestShape


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes that a rank has beside its weights."""

    activations: int
    graphs: int
    tiles: int
    kv: int
    left: int
    """Bytes that nothing takes; below 0 where the plan does not fit."""


@dataclass(frozen=True)
class LayoutPlan:
    """The plan of a layout: what it takes and gives. Of each stage, only the first and the last rank are counted."""

    layout: Layout
    config: EngineConfig
    model: PlannedModel
    device: Device
    shape: RequestShape
    ranks: tuple[RankPlan, ...]
    memory: MemoryPlan
    """Memory of a rank with the largest part of everything: all ranks have as many blocks and pages as that one."""

    @property
    def fits(self) -> bool:
        return not self.problem

    @cached_property
    def problem(self) -> str:
        """Reason why the layout does not fit; empty where it does."""
        try:
            self.memory.check()
        except InvalidConfig as error:
            return str(error)
        return ""

    @property
    def context(self) -> int:
        """Tokens that a sequence may have."""
        return self.memory.context

    @cached_property
    def longest(self) -> int:
        """Tokens that a sequence may have at most, up to the length that the model was trained for."""
        return self.memory.longest(self.memory.model.trained_length)

    @property
    def num_blocks(self) -> int:
        """KV blocks of every rank, as the engine has them, the dummy included."""
        return self.memory.num_blocks + 1

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights on the rank that has the most."""
        return self.memory.model.weight_bytes

    def taken_by(self, rank: RankPlan) -> MemoryUse:
        """Return what a rank's memory is for. Every rank has as many blocks and pages as all of them have space for."""
        memory = replace(self.memory, model=rank.facts)
        tiles = self.memory.tile_pages * rank.facts.bytes_per_tile
        kv = self.memory.num_blocks * memory.block_bytes
        return MemoryUse(memory.activations, memory.graphs, tiles, kv, memory.left - tiles - kv)

    @property
    def request_tokens(self) -> int:
        return self.shape.tokens(self.model.sizes.tokens_per_tile)

    @property
    def held(self) -> int:
        """Requests whose keys and values one replica has memory for at once."""
        if not self.fits or self.request_tokens > self.context:
            return 0
        blocks = -(-self.request_tokens // self.memory.block_size)
        return self.memory.kv_room.bytes // self.memory.block_bytes // blocks

    @property
    def at_once(self) -> int:
        """Requests that one replica computes at once."""
        return min(self.held, self.config.max_num_seqs)

    @property
    def pictures(self) -> int:
        """Most pictures that a request may have if its other numbers are as stated."""
        limit = (self.config.limit_mm_per_prompt or {}).get("image")
        return self.shape.most_pictures(self.context, self.model.sizes.tokens_per_tile, limit) if self.fits else 0

    @property
    def stages(self) -> Sequence[RankPlan]:
        """The first rank of each stage of a pipeline."""
        return [rank for rank in self.ranks if rank.rank % self.layout.tensor == 0]

    @property
    def first_token(self) -> float | None:
        """Seconds to the first token of one request, at least; stages wait for one another."""
        tokens = self.shape.prompt(self.model.sizes.tokens_per_tile)
        steps = -(-tokens // self.config.max_num_batched_tokens)
        tiles = self.shape.pictures * self.shape.tiles
        if self.layout.tower == "data":
            tiles = -(-tiles // self.layout.tensor)
        parts = [self.stages[0].work.tiles(tiles), *(stage.work.prompt(tokens, steps) for stage in self.stages)]
        return self._seconds(parts)

    def decode(self, sequences: int) -> float | None:
        """Return the least seconds of a step that decodes a token of each of so many requests; None = not known."""
        return self._seconds([stage.work.decode(sequences, self.request_tokens) for stage in self.stages])

    def _seconds(self, parts: Sequence[StageWork]) -> float | None:
        times = [part.seconds(self.device) for part in parts]
        known = [time for time in times if time is not None]
        return sum(known) if len(known) == len(times) else None

    @property
    def tokens_a_second(self) -> float | None:
        """Tokens a second, at most, of all replicas together with as many requests as they compute at once."""
        step = self.decode(self.at_once) if self.at_once else None
        return None if not step else self.layout.data * self.at_once / step


@dataclass(frozen=True)
class Planner:
    """Plans a model on devices, for requests of one shape."""

    model: PlannedModel
    devices: Devices
    facts: DeviceFacts
    """Facts of one device."""
    shape: RequestShape
    environment: Environment

    def plan(self, layout: Layout) -> LayoutPlan:
        """Plan a layout. Raises InvalidConfig where the model cannot be shared out so or the context is too long."""
        counted = sorted(
            {stage * layout.tensor + rank for stage in range(layout.pipeline) for rank in (0, layout.tensor - 1)}
        )
        config, ranks = self.model.config, tuple(plan_rank(self.model, layout, rank) for rank in counted)
        memory = planned_memory(
            config, largest([rank.facts for rank in ranks]), self._rank_facts(layout), self.environment
        )
        device = self.devices.device
        if device.here:
            device = device.shared_by(layout.devices)
        return LayoutPlan(layout, config, self.model, device, self.shape, ranks, memory)

    def _rank_facts(self, layout: Layout) -> DeviceFacts:
        """Return what a rank has of a device: ranks of this machine share its memory, and several capture no graphs
        and encode no tiles beside steps.
        """
        ranks, facts = layout.devices if self.devices.device.here else 1, self.facts
        captures, beside = (known and layout.ranks == 1 for known in (facts.captures_graphs, facts.tiles_beside))
        free, total = facts.free_bytes // ranks, facts.total_bytes // ranks
        return replace(facts, free_bytes=free, total_bytes=total, captures_graphs=captures, tiles_beside=beside)

    def layouts(self) -> list[Layout]:
        """Return all layouts that use every device; on this machine, one rank, as several share its cores.

        Experts, if the model has any, are on one rank each.
        """
        if self.devices.device.here:
            return [self._layout(1, 1, 1)]
        count = self.devices.count
        shapes = ((tensor, stages) for tensor in _divisors(count) for stages in _divisors(count // tensor))
        layouts = (self._layout(tensor, stages, count // tensor // stages) for tensor, stages in shapes)
        return [layout for layout in layouts if can_be_shared(self.model.sizes.decoder, layout)]

    def _layout(self, tensor: int, pipeline: int, data: int) -> Layout:
        """Return the options' layout in these sizes. Experts stay whole, where there are any to spread over ranks."""
        config = self.model.config
        spread = self.model.sizes.decoder.experts is not None and tensor > 1
        placement = config.expert_placement_strategy if spread else None
        return replace(config.layout, tensor=tensor, pipeline=pipeline, data=data, experts=placement)

    def compared(self) -> list[LayoutPlan]:
        """Return all layouts that the model can have, the recommended one first."""
        plans = []
        for layout in self.layouts():
            with suppress(InvalidConfig):  # which is raised, and said, where it is the layout that was asked for
                plans.append(self.plan(layout))
        return sorted(plans, key=_rank_of)


def _divisors(count: int) -> list[int]:
    return [size for size in range(1, count + 1) if count % size == 0]


def _rank_of(plan: LayoutPlan) -> tuple[object, ...]:
    """Return a key that sorts layouts by recommendation, which `why` puts into words.

    Layouts that fit come first, then those that hold enough requests or else the most; among these the fewest ranks a
    replica, the fewest stages, and whole experts.
    """
    enough = plan.held >= plan.config.max_num_seqs
    layout = plan.layout
    together = plan.layout.data * plan.at_once
    return (
        not plan.fits,
        not enough,
        0 if enough else -together,
        layout.ranks,
        layout.pipeline,
        layout.experts is None,
    )


def why(best: LayoutPlan) -> str:
    """Return why a layout is the recommended one, as the end of a sentence."""
    layout, wanted = best.layout, best.config.max_num_seqs
    if layout.devices == 1:
        return "there is one device"
    ranks = f"{layout.ranks} ranks" if layout.ranks > 1 else "one rank"
    if best.held < wanted:
        replicas = f"{layout.data} replicas of {ranks} hold" if layout.data > 1 else f"a replica of {ranks} holds"
        reason = f"{replicas} the most such requests at once, {layout.data * best.at_once}"
    else:
        reason = f"{ranks} a replica are the fewest that hold max_num_seqs={wanted} such requests at once"
    if layout.data > 1:
        reason += "; ranks wait for one another in every layer, replicas never"
    if layout.pipeline > 1:
        reason += "; stages are for what heads cannot be shared out over"
    if layout.experts is not None:
        reason += "; whole experts make larger products than a part of each"
    return reason
