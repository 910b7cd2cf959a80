"""The CPU of this machine, and how much of it a container leaves."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tilewise.host import control_groups, read_words, usable_cpus

_SETS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
"""Instructions that make a difference to products, as Linux names them."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The CPU of a machine, and how much of it this process may use."""

    name: str
    revision: str
    """Family, model and stepping as numbers."""
    vendor: str
    """Name of the vendor, as the CPU itself says it, such as GenuineIntel; empty where Linux does not say."""
    features: frozenset[str]
    """All instruction sets that Linux names; empty where it does not say."""
    cores: int
    """Number of cores that this process may run on."""
    quota: float | None
    """Number of cores whose time a container gets; None = all."""

    @classmethod
    def here(cls, root: Path = Path("/")) -> Machine:
        """Read the machine from /proc and /sys, which are in `root`."""
        cpu = _first_cpu(root)
        cores = usable_cpus()
        quota = min(_quotas(root), default=None)
        name = cpu.get("model name", "") or platform.machine()
        revision = " ".join(cpu.get(part, "") for part in ("cpu family", "model", "stepping"))
        return cls(name, revision, cpu.get("vendor_id", ""), frozenset(cpu.get("flags", "").split()), cores, quota)

    @property
    def instructions(self) -> tuple[str, ...]:
        """Instruction sets of the CPU that make a difference to products."""
        return tuple(name for name in _SETS if name in self.features)

    @property
    def has_vectors(self) -> bool:
        """True if kernels of our own can be built for the CPU."""
        return {"avx2", "fma"} <= self.features


def _first_cpu(root: Path) -> dict[str, str]:
    """Return what /proc/cpuinfo says of the first CPU; nothing where there is no such file."""
    try:
        text = (root / "proc" / "cpuinfo").read_text()
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _quotas(root: Path) -> Iterator[float]:
    """Yield the cores that each control group grants: microseconds of a period by those of the period.

    Groups of version 2 have both in one file, those of version 1 in two.
    """
    for folder in control_groups(root, "cpu"):
        quota = read_words(folder / "cpu.max") or read_words(folder / "cpu.cfs_quota_us") + read_words(
            folder / "cpu.cfs_period_us"
        )
        if len(quota) == 2 and quota[0].isdecimal():
            yield int(quota[0]) / int(quota[1])
