"""An engine that computes nothing, to see what everything around it costs."""

from __future__ import annotations

from dataclasses import replace

from tilewise.engine.core import EngineCore
from tilewise.plan import Resolved
from tilewise.platforms.cpu import CpuPlatform
from tilewise.remote.wire import Launch, Ready
from tilewise.step import EncodedTile, Handle, Limits, StepPlan, StepResult
from tilewise.types import SampledToken

LIMITS = Limits(256, 2048, 8192, 16, 256 * 129, 16, 64, 4, 4)


class EmptyRunner:
    """Answers with the same ordinary token."""

    def launch(self, plan: StepPlan) -> Handle:
        sampled = {work.slot: (SampledToken(71),) for work in plan.work if work.samples}
        result = StepResult(sampled, tuple(EncodedTile(job.digest) for job in plan.encode))
        return lambda: result

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass


def build(_: Launch, limits: Limits = LIMITS) -> tuple[EngineCore, Ready]:
    resolved = Resolved(limits, False, False, {}, CpuPlatform().resize_kernels)
    return EngineCore(EmptyRunner(), limits), Ready(resolved, {})


def build_for_pictures(launch: Launch) -> tuple[EngineCore, Ready]:
    """Build one for tiles of 448 pixels and prompts of 30 of them."""
    return build(launch, replace(LIMITS, max_model_len=8192, tokens_per_tile=256, num_blocks=2**16, tile_pages=4096))
