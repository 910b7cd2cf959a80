"""A deployment: the layout that is asked for or recommended, what others would give, and remedies where none fits."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from tilewise.capacity.layouts import LayoutPlan, Planner
from tilewise.capacity.model import PlannedModel, planned_model, platform_of
from tilewise.capacity.ranks import can_be_shared
from tilewise.config import EngineConfig
from tilewise.environment import Environment
from tilewise.errors import InvalidConfig
from tilewise.inputs.media.tiling import Tiling
from tilewise.layout import Layout, flags_of
from tilewise.models.config import ModelConfig
from tilewise.plan import why_batch_invariant
from tilewise.plan.request import Devices, PlanRequest
from tilewise.runner.build import device_facts
from tilewise.units import GIB

Requantised = Callable[[str], PlannedModel]
"""Function that returns the model as quantised by the named scheme."""
_MOST_DEVICES, _MOST_GIB = 64, 4096
_TOKENS = (4096, 2048, 1024, 512, 256)


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change of flags, devices or memory, and the context that fits with it."""

    flags: str
    longest: int
    """Tokens of the longest context that fits."""
    whole: bool
    """True if the context that was asked for fits."""

    def __str__(self) -> str:
        return self.flags + ("" if self.whole else f" --max-model-len {self.longest}")


@dataclass(frozen=True)
class Remedies:
    """The remedies for a plan that does not fit: the mildest of each kind, those first that change the least."""

    planner: Planner
    layout: Layout | None
    """Layout that was asked for; None = any."""
    requantised: Requantised

    def found(self) -> Iterator[Remedy]:
        config, model = self.planner.model.config, self.planner.model
        failed = self._best(self.planner)
        if failed.longest:
            yield self._remedy(f"--max-model-len {failed.longest}", failed, whole=True)
        if config.quantised_kv is None:
            smaller = self._best(self._with(replace(config, kv_cache_dtype="int8")))
            if smaller.longest > failed.longest:
                yield self._remedy("--kv-cache-dtype int8", smaller)
        yield from self._smaller_steps(config)
        if model.files.folder.quantization is None and config.quantization is None:
            for scheme in ("int8", "w4a16"):
                yield from self._rounded(scheme)
        if not self.planner.devices.device.here:
            yield from self._more_devices()
        yield from self._more_memory()

    def _best(self, planner: Planner) -> LayoutPlan:
        """Return the layout with the longest context among those that may be taken."""
        plans = [planner.plan(self.layout)] if self.layout is not None else planner.compared()
        return max(plans, key=lambda plan: (plan.fits, plan.longest))

    def _remedy(self, flags: str, plan: LayoutPlan, whole: bool | None = None) -> Remedy:
        layout = "" if self.layout is not None else flags_of(plan.layout)
        return Remedy(f"{flags} {layout}".rstrip(), plan.longest, plan.fits if whole is None else whole)

    def _with(self, config: EngineConfig) -> Planner:
        return replace(self.planner, model=replace(self.planner.model, config=config))

    def _smaller_steps(self, config: EngineConfig) -> Iterator[Remedy]:
        """Yield the largest smaller step that helps: steps of fewer tokens have smaller activations."""
        for tokens in _TOKENS:
            if config.max_num_seqs <= tokens < config.max_num_batched_tokens:
                plan = self._best(self._with(replace(config, max_num_batched_tokens=tokens)))
                if plan.fits:
                    yield self._remedy(f"--max-num-batched-tokens {tokens}", plan)
                    return

    def _rounded(self, scheme: str) -> Iterator[Remedy]:
        try:
            plan = self._best(replace(self.planner, model=self.requantised(scheme)))
        except InvalidConfig:  # there is no such checkpoint of this model
            return
        if plan.longest:
            yield self._remedy(f"--quantization {scheme}", plan)

    def _more_devices(self) -> Iterator[Remedy]:
        """Yield the next power of two of devices on which some layout fits."""
        count, device = self.planner.devices.count, self.planner.devices.device
        while (count := 2 ** count.bit_length()) <= _MOST_DEVICES:
            best = replace(self.planner, devices=Devices(count, device)).compared()[0]
            if best.fits:
                flags = f"--devices {count}x{device.name} {flags_of(best.layout)}"
                yield Remedy(flags.rstrip(), best.longest, True)
                return

    def _more_memory(self) -> Iterator[Remedy]:
        """Yield the least GiB of a device with which the model fits, up to `_MOST_GIB`."""
        gib = bisect_left(range(_MOST_GIB + 1), True, key=lambda gib: self._best(self._of_memory(gib)).fits)
        if gib > _MOST_GIB:
            return
        plan = self._best(self._of_memory(gib))
        where = f"{gib} GiB of memory" if self.planner.devices.device.here else f"devices of {gib} GiB"
        yield self._remedy(f"{where}{', as' if self.layout is None and plan.layout.devices > 1 else ''}", plan)

    def _of_memory(self, gib: int) -> Planner:
        facts = replace(self.planner.facts, free_bytes=gib * GIB, total_bytes=gib * GIB)
        return replace(self.planner, facts=facts)


@dataclass(frozen=True)
class Deployment:
    request: PlanRequest
    planner: Planner
    work: Path

    @classmethod
    def of(cls, request: PlanRequest, work: Path, environment: Environment) -> Deployment:
        """Plan a deployment, with files made in folder `work`. Raises what a start would before it reads a weight."""
        platform = platform_of(request.devices.device, request.config.device)
        platform.ops(why_batch_invariant(request.config, environment) is not None)  # which refuses what it cannot do
        model = planned_model(request.config, request.quantization, platform, work)
        shape = request.shape if request.tiles_stated else replace(request.shape, tiles=_most_tiles(model.tiling))
        shape.check_limit(request.config.limit_mm_per_prompt)
        if request.layout is not None:
            _check_layout(request.layout, request.devices, model.sizes)
        return cls(request, Planner(model, request.devices, device_facts(platform), shape, environment), work)

    @cached_property
    def compared(self) -> list[LayoutPlan]:
        """All layouts of these devices, the recommended one first."""
        return self.planner.compared()

    @property
    def recommended(self) -> LayoutPlan | None:
        """The recommended layout; None where nothing fits."""
        best = self.compared[0] if self.compared else None
        return best if best is not None and best.fits else None

    @cached_property
    def chosen(self) -> LayoutPlan:
        """The layout that was asked for, else the recommended one, else the one that is nearest to fit."""
        if self.request.layout is not None:
            return self.planner.plan(self.request.layout)
        if not self.compared:
            return self.planner.plan(self.planner.layouts()[0])
        return self.recommended or max(self.compared, key=lambda plan: plan.memory.left)

    @property
    def remedies(self) -> list[Remedy]:
        if self.chosen.fits:
            return []
        return list(Remedies(self.planner, self.request.layout, self._requantised).found())

    def _requantised(self, scheme: str) -> PlannedModel:
        return planned_model(
            self.request.config, scheme, platform_of(self.request.devices.device, self.request.config.device), self.work
        )


def _most_tiles(tiling: Tiling) -> int:
    """Return the most tiles of a picture, with its thumbnail."""
    if not tiling.dynamic:
        return 1
    return tiling.max_tiles + (tiling.thumbnail and tiling.max_tiles > 1)


def _check_layout(layout: Layout, devices: Devices, sizes: ModelConfig) -> None:
    """Raise InvalidConfig for a layout that needs more devices than there are, or that the model cannot have."""
    if not devices.device.here and layout.devices > devices.count:
        raise InvalidConfig(
            f"tensor_parallel_size={layout.tensor} x pipeline_parallel_size={layout.pipeline} x data_parallel_size="
            f"{layout.data} are {layout.devices} devices, --devices has {devices.count}: lower one, or state more."
        )
    layers, experts = sizes.decoder.num_layers, sizes.decoder.experts
    layout.layers(0, layers)
    if layout.experts is not None and experts is None:
        raise InvalidConfig("enable_expert_parallel spreads experts over ranks, and this model has none: leave it out.")
    one = Layout(layout.tensor, 1, 1)
    if not can_be_shared(sizes.decoder, layout) and not can_be_shared(sizes.decoder, one):
        fitting = [n for n in range(1, 129) if can_be_shared(sizes.decoder, Layout(n))]
        decoder = sizes.decoder
        raise InvalidConfig(
            f"tensor_parallel_size={layout.tensor}: the {decoder.num_heads} attention heads, the "
            f"{decoder.num_kv_heads} key/value heads and the inputs of MLPs cannot be shared out over so many ranks: "
            f"use {', '.join(map(str, fitting[:-1]))}{' or ' if fitting[1:] else ''}{fitting[-1]}."
        )
