"""The CPU: torch's fused attention where it has one, the reference elsewhere."""

from __future__ import annotations

import logging
import platform

import torch

from tilewise.platforms.cpu.invariant import InvariantCpuOps
from tilewise.platforms.cpu.memory import available_memory
from tilewise.platforms.cpu.ops import CpuOps

logger = logging.getLogger("tilewise")


def choose_dtype(checkpoint: torch.dtype, parameters: int, free_bytes: int, native_bfloat16: bool) -> torch.dtype:
    """The checkpoint's own dtype, with two exceptions.

    float16 becomes bfloat16: CPUs compute it slowly, and models of bfloat16 overflow in it. bfloat16 becomes float32
    where the CPU has no instructions for it and products take four times as long, if there is plenty of memory.
    """
    if checkpoint == torch.float32 or native_bfloat16 or 4 * parameters > free_bytes // 2:
        return torch.bfloat16 if checkpoint == torch.float16 else checkpoint
    logger.info("dtype: float32, which this CPU computes faster than bfloat16 (--dtype bfloat16 takes half the memory)")
    return torch.float32


def has_bfloat16() -> bool:
    """Whether products of bfloat16 are instructions here. Only x86 has CPUs in use that lack them."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class CpuPlatform:
    name = "cpu"
    device = torch.device("cpu")
    beside_host = False
    captures_graphs = False
    utilization: float | None = None

    def ops(self, batch_invariant: bool = False) -> CpuOps:
        return InvariantCpuOps() if batch_invariant else CpuOps()

    def default_dtype(self, checkpoint: torch.dtype, parameters: int) -> torch.dtype:
        return choose_dtype(checkpoint, parameters, self.free_memory(), has_bfloat16())

    def total_memory(self) -> int:
        return available_memory().total

    def free_memory(self) -> int:
        return available_memory().free
