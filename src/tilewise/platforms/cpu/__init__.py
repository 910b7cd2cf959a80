"""The CPU: torch's fused attention where it has one, the reference elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from tilewise.platforms.cpu.ops import CpuOps


class CpuPlatform:
    name = "cpu"
    device = torch.device("cpu")

    def ops(self) -> CpuOps:
        return CpuOps()

    def default_dtype(self, checkpoint: torch.dtype) -> torch.dtype:
        """The checkpoint's own, except float16, which CPUs compute slowly and models of bfloat16 overflow."""
        return torch.bfloat16 if checkpoint == torch.float16 else checkpoint

    def free_memory(self) -> int:
        """Available physical memory in bytes, as the kernel estimates it where it does."""
        try:
            with Path("/proc/meminfo").open() as lines:
                for line in lines:
                    if line.startswith("MemAvailable:"):
                        return int(line.split()[1]) * 1024
        except OSError:
            pass
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
