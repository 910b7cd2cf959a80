"""A deployment: the layout that is asked for or recommended, what others would give, and what to do if none fits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from tilewise.deployment.layouts import LayoutPlan, Planner
from tilewise.deployment.model import PlannedModel, planned_model
from tilewise.deployment.platform import platform_of
from tilewise.deployment.ranks import can_be_shared
from tilewise.deployment.remedies import Remedies, Remedy
from tilewise.errors import InvalidConfig
from tilewise.inputs.images import Tiling
from tilewise.layout import Layout
from tilewise.models.config import ModelConfig
from tilewise.plan.devices import Devices
from tilewise.plan.request import Wishes
from tilewise.runner.build import device_facts


@dataclass(frozen=True)
class Deployment:
    wishes: Wishes
    planner: Planner
    work: Path

    @classmethod
    def of(cls, wishes: Wishes, work: Path) -> Deployment:
        """`work` is a folder for files that are made. Raises what a start would raise before it reads a weight."""
        platform = platform_of(wishes.devices.device, wishes.config.device)
        model = planned_model(wishes.config, wishes.quantization, platform, work)
        shape = wishes.shape if wishes.tiles_stated else replace(wishes.shape, tiles=_most_tiles(model.tiling))
        shape.check_limit(wishes.config.limit_mm_per_prompt)
        if wishes.layout is not None:
            _check_layout(wishes.layout, wishes.devices, model.sizes)
        return cls(wishes, Planner(model, wishes.devices, device_facts(platform), shape), work)

    @cached_property
    def compared(self) -> list[LayoutPlan]:
        """All layouts of these devices, the recommended one first."""
        return self.planner.compared()

    @property
    def recommended(self) -> LayoutPlan | None:
        """None where nothing fits."""
        best = self.compared[0] if self.compared else None
        return best if best is not None and best.fits else None

    @cached_property
    def chosen(self) -> LayoutPlan:
        """What was asked for, else the recommended layout, else the one that is nearest to fit."""
        if self.wishes.layout is not None:
            return self.planner.plan(self.wishes.layout)
        if not self.compared:
            return self.planner.plan(self.planner.layouts()[0])
        return self.recommended or max(self.compared, key=lambda plan: plan.memory.left)

    @property
    def remedies(self) -> list[Remedy]:
        if self.chosen.fits:
            return []
        return list(Remedies(self.planner, self.wishes.layout, self._requantised).found())

    def _requantised(self, scheme: str) -> PlannedModel:
        return planned_model(
            self.wishes.config, scheme, platform_of(self.wishes.devices.device, self.wishes.config.device), self.work
        )


def _most_tiles(tiling: Tiling) -> int:
    """Of a picture, with its thumbnail."""
    if not tiling.dynamic:
        return 1
    return tiling.max_tiles + (tiling.thumbnail and tiling.max_tiles > 1)


def _check_layout(layout: Layout, devices: Devices, sizes: ModelConfig) -> None:
    """Raises InvalidConfig for a layout that needs more devices than there are, or that the model cannot have."""
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
