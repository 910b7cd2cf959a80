"""Platforms: what a device is, and which implementation each op has on it."""

from __future__ import annotations

from tilewise.platforms.base import Platform


def current_platform() -> Platform:
    """The best platform of this machine."""
    from tilewise.platforms.cpu import CpuPlatform

    return CpuPlatform()
