"""What would make a deployment fit that does not: each remedy is planned as the deployment was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tilewise.amounts import GIB
from tilewise.config import EngineConfig
from tilewise.deployment.layouts import LayoutPlan, Planner
from tilewise.deployment.model import PlannedModel
from tilewise.errors import InvalidConfig
from tilewise.layout import Layout, flags_of
from tilewise.plan.devices import Devices

Requantised = Callable[[str], PlannedModel]
"""The model, quantised by a scheme."""
_MOST_DEVICES, _MOST_GIB = 64, 4096
_TOKENS = (4096, 2048, 1024, 512, 256)


@dataclass(frozen=True, slots=True)
class Remedy:
    """Flags that are added or changed, and what fits with them."""

    flags: str
    longest: int
    """Tokens of the longest context that fits."""
    whole: bool
    """The context that was asked for fits."""

    def __str__(self) -> str:
        return self.flags + ("" if self.whole else f" --max-model-len {self.longest}")


@dataclass(frozen=True)
class Remedies:
    """Of each kind the mildest that is enough, those first that change the least."""

    planner: Planner
    layout: Layout | None
    """That was asked for; None = any."""
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
        """The layout with the longest context among those that may be taken."""
        plans = [planner.plan(self.layout)] if self.layout is not None else planner.compared()
        return max(plans, key=lambda plan: (plan.fits, plan.longest))

    def _remedy(self, flags: str, plan: LayoutPlan, whole: bool | None = None) -> Remedy:
        layout = "" if self.layout is not None else flags_of(plan.layout)
        return Remedy(f"{flags} {layout}".rstrip(), plan.longest, plan.fits if whole is None else whole)

    def _with(self, config: EngineConfig) -> Planner:
        return replace(self.planner, model=replace(self.planner.model, config=config))

    def _smaller_steps(self, config: EngineConfig) -> Iterator[Remedy]:
        """Steps of fewer tokens, whose activations are smaller."""
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
        """The next power of two of devices on which some layout fits."""
        count, device = self.planner.devices.count, self.planner.devices.device
        while (count := 2 ** count.bit_length()) <= _MOST_DEVICES:
            best = replace(self.planner, devices=Devices(count, device)).compared()[0]
            if best.fits:
                flags = f"--devices {count}x{device.name} {flags_of(best.layout)}"
                yield Remedy(flags.rstrip(), best.longest, True)
                return

    def _more_memory(self) -> Iterator[Remedy]:
        """The least GiB of a device with which it fits, if there is such a device."""
        low, high = 0, 1
        while high <= _MOST_GIB and not self._fits_in(high):
            low, high = high, 2 * high
        if high > _MOST_GIB:
            return
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._fits_in(middle) else (middle, high)
        plan = self._best(self._of_memory(high))
        where = f"{high} GiB of memory" if self.planner.devices.device.here else f"devices of {high} GiB"
        yield self._remedy(f"{where}{', as' if self.layout is None and plan.layout.devices > 1 else ''}", plan)

    def _fits_in(self, gib: int) -> bool:
        return self._best(self._of_memory(gib)).fits

    def _of_memory(self, gib: int) -> Planner:
        facts = replace(self.planner.facts, free_bytes=gib * GIB, total_bytes=gib * GIB)
        return replace(self.planner, facts=facts)
