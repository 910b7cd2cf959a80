"""Platforms: what a device is, and which implementation each op has on it."""

from __future__ import annotations

from typing import Literal

from tilewise.host.memory import Memory
from tilewise.platforms.base import Platform

DeviceKind = Literal["auto", "cpu", "cuda"]


def current_platform(device: DeviceKind = "auto", part: Memory | None = None, number: int = 0) -> Platform:
    """The platform of a device of this machine; auto = a GPU where torch finds one, else the CPU.

    Of the CPU's memory this process may take a part (None = what is free); of several GPUs it takes that `number`.
    Raises InvalidConfig where there is no such device.
    """
    from tilewise.platforms.cpu import CpuPlatform
    from tilewise.platforms.cuda.platform import CudaPlatform, cuda_missing

    if device == "cuda" or (device == "auto" and cuda_missing() is None):
        return CudaPlatform(number)
    return CpuPlatform(part)
