"""A model's sizes to plan with: InternVL3-1B in bfloat16, with a round number for activations."""

from __future__ import annotations

from tilewise.config import EngineConfig
from tilewise.environment import Environment
from tilewise.plan import Resolved, resolve
from tilewise.plan.memory import DeviceFacts, LargestStep, ModelFacts
from tilewise.units import GIB


def activation_bytes(step: LargestStep) -> int:
    """A quarter GiB at 4096 tokens and a context of 32768, half of it for what grows with the context."""
    return GIB // 8 * step.tokens // 4096 * (32768 + step.context) // 32768


INTERNVL3_1B = ModelFacts(
    trained_length=32768,
    tokens_per_tile=256,
    kv_bytes_per_token=2 * 24 * 2 * 64 * 2,
    bytes_per_tile=256 * 896 * 2,
    weight_bytes=938_200_000 * 2,
    tile_multiplications=24 * 1025 * 1024 * (4 * 1024 + 2 * 4096),
    activation_bytes=activation_bytes,
    pool_bytes=activation_bytes,
)


def resolved(
    free: float = 16, total: float | None = None, share: float | None = None, variable: str = "", **options
) -> Resolved:
    """Memory in GiB; `share` is what the platform takes unless told otherwise; `variable` is set, as NAME=1."""
    device = DeviceFacts(int(free * GIB), int((total or free) * GIB), share)
    return resolve(
        EngineConfig.of(**options), INTERNVL3_1B, device, Environment(dict([variable.split("=")] if variable else []))
    )


def kv_bytes(found: Resolved) -> int:
    return (found.limits.num_blocks - 1) * found.limits.block_size * INTERNVL3_1B.kv_bytes_per_token
