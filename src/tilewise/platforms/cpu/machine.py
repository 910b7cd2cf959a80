"""What the CPU of this machine is, and how much of it a container leaves to its processes."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tilewise.host.groups import groups, words

_SETS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
"""Instructions that make a difference to products, as Linux names them."""


@dataclass(frozen=True, slots=True)
class Machine:
    name: str
    revision: str
    """Family, model and stepping as numbers."""
    vendor: str
    """As the CPU says it itself, such as GenuineIntel; empty where Linux does not say."""
    features: frozenset[str]
    """All that Linux knows of its instructions; empty where it does not say."""
    cores: int
    """That this process may run on."""
    quota: float | None
    """Of how many cores' time a container gets; None = all."""

    @classmethod
    def here(cls, root: Path = Path("/")) -> Machine:
        """`root` is where /proc and /sys are."""
        cpu = _first_cpu(root)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        quota = min(_quotas(root), default=None)
        name = cpu.get("model name", "") or platform.machine()
        revision = " ".join(cpu.get(part, "") for part in ("cpu family", "model", "stepping"))
        return cls(name, revision, cpu.get("vendor_id", ""), frozenset(cpu.get("flags", "").split()), cores, quota)

    @property
    def instructions(self) -> tuple[str, ...]:
        """Those of its instruction sets that matter."""
        return tuple(name for name in _SETS if name in self.features)

    @property
    def has_vectors(self) -> bool:
        """Whether kernels of our own can be built for it."""
        return {"avx2", "fma"} <= self.features


def _first_cpu(root: Path) -> dict[str, str]:
    """What /proc/cpuinfo says of the first CPU; nothing where there is no such file."""
    try:
        text = (root / "proc" / "cpuinfo").read_text()
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _quotas(root: Path) -> Iterator[float]:
    """Microseconds of a period's: one file in groups of version 2, two in those of version 1."""
    for folder in groups(root, "cpu"):
        quota = words(folder / "cpu.max") or words(folder / "cpu.cfs_quota_us") + words(folder / "cpu.cfs_period_us")
        if len(quota) == 2 and quota[0].isdecimal():
            yield int(quota[0]) / int(quota[1])
