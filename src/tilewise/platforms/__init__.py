"""Platforms: what a device is, and which implementation each op has on it."""

from __future__ import annotations

import logging
from typing import Literal

from tilewise.host import Memory
from tilewise.platforms.base import Platform

logger = logging.getLogger("tilewise")

DeviceKind = Literal["auto", "cpu", "cuda", "npu"]


def current_platform(device: DeviceKind = "auto", part: Memory | None = None, number: int = 0) -> Platform:
    """Return the platform of a device of this machine; auto = a GPU or an NPU where torch finds one, else the CPU.

    `part` is the CPU's memory that this process may take (None = what is free), `number` that of the device among
    several. Raises InvalidConfig where there is no such device.
    """
    from tilewise.platforms.ascend import AscendPlatform, npu_installed, npu_missing
    from tilewise.platforms.cpu import CpuPlatform
    from tilewise.platforms.cuda import CudaPlatform, cuda_missing

    if device == "cuda" or (device == "auto" and cuda_missing() is None):
        return CudaPlatform(number)
    if device == "npu" or (device == "auto" and npu_missing() is None):
        return AscendPlatform(number)
    if device == "auto" and npu_installed():
        logger.warning("device: cpu, as %s", npu_missing())
    return CpuPlatform(part)
