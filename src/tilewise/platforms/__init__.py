"""Platforms: what a device is, and which implementation each op has on it."""

from __future__ import annotations

from tilewise.host.memory import Memory
from tilewise.platforms.base import Platform


def current_platform(part: Memory | None = None) -> Platform:
    """The best platform of this machine, of whose memory this process may take a part; None = what is free."""
    from tilewise.platforms.cpu import CpuPlatform

    return CpuPlatform(part)
