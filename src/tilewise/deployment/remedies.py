"""What would make a deployment fit that does not: each remedy is planned as the deployment was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tilewise.amounts import GIB
from tilewise.config import EngineConfig
from tilewise.deployment.layouts import LayoutPlan, Planner
from tilewise.deployment.model import PlannedModel
from tilewise.layout import Layout
from tilewise.plan.devices import Devices
from tilewise.plan.layouts import flags_of

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


def remedies(planner: Planner, failed: LayoutPlan, requantised: Requantised) -> list[Remedy]:
    """Of each kind the mildest that is enough, those first that change the least."""
    return list(_all(planner, failed, requantised))


def _all(planner: Planner, failed: LayoutPlan, requantised: Requantised) -> Iterator[Remedy]:
    layout, config = failed.layout, failed.config
    if failed.longest:
        yield Remedy(f"--max-model-len {failed.longest}", failed.longest, True)
    if config.quantised_kv is None:
        yield from _tried(planner, layout, replace(config, kv_cache_dtype="int8"), "--kv-cache-dtype int8", failed)
    yield from _smaller_steps(planner, failed)
    if failed.sizes.files.folder.quantization is None and config.quantization is None:
        for scheme in ("int8", "w4a16"):
            other = replace(planner, model=requantised(scheme))
            yield from _fitting(other.plan(layout), f"--quantization {scheme}")
    if not planner.devices.device.here:
        yield from _more_devices(planner)
    memory = least_memory(planner, layout)
    if memory is not None:
        yield Remedy(f"{memory} GiB of memory on each device", failed.context, True)


def _tried(planner: Planner, layout: Layout, config: EngineConfig, flags: str, failed: LayoutPlan) -> Iterator[Remedy]:
    """A change of options, if it helps more than a shorter context alone."""
    plan = _with(planner, config).plan(layout)
    if plan.longest > failed.longest:
        yield from _fitting(plan, flags)


def _fitting(plan: LayoutPlan, flags: str) -> Iterator[Remedy]:
    if plan.longest:
        yield Remedy(flags, plan.longest, plan.fits)


def _with(planner: Planner, config: EngineConfig) -> Planner:
    return replace(planner, model=replace(planner.model, config=config))


def _smaller_steps(planner: Planner, failed: LayoutPlan) -> Iterator[Remedy]:
    """Steps of fewer tokens, whose activations are smaller."""
    config = failed.config
    for tokens in _TOKENS:
        if config.max_num_seqs <= tokens < config.max_num_batched_tokens:
            plan = _with(planner, replace(config, max_num_batched_tokens=tokens)).plan(failed.layout)
            if plan.fits:
                yield Remedy(f"--max-num-batched-tokens {tokens}", plan.longest, True)
                return


def _more_devices(planner: Planner) -> Iterator[Remedy]:
    """The next power of two of devices on which some layout fits."""
    count = planner.devices.count
    while (count := 2 ** count.bit_length()) <= _MOST_DEVICES:
        more = replace(planner, devices=Devices(count, planner.devices.device))
        best = more.compared()[0]
        if best.fits:
            yield Remedy(
                f"--devices {count}x{planner.devices.device.name} {flags_of(best.layout)}".rstrip(), best.longest, True
            )
            return


def least_memory(planner: Planner, layout: Layout) -> int | None:
    """The least GiB of a device with which a layout fits, if there is such a device."""

    def fits(gib: int) -> bool:
        facts = replace(planner.facts, free_bytes=gib * GIB, total_bytes=gib * GIB)
        return replace(planner, facts=facts).plan(layout).fits

    low, high = 0, 1
    while high <= _MOST_GIB and not fits(high):
        low, high = high, 2 * high
    if high > _MOST_GIB:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
