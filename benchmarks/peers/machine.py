"""What a result is of: the machine and its state."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_SETS = (
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
    "i8mm",
)


def machine() -> dict[str, str]:
    cpu = _fields(Path("/proc/cpuinfo"))
    memory = _fields(Path("/proc/meminfo"))
    flags = (cpu.get("flags") or cpu.get("Features") or "").split()
    return {
        "processor": cpu.get("model name") or platform.processor() or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "instruction sets": " ".join(name for name in _SETS if name in flags),
        "memory": f"{int(memory.get('MemTotal', '0').split()[0]) / 2**20:.0f} GiB",
        "system": f"{platform.system()} {platform.release().split('-')[0]}, Python {platform.python_version()}",
    }


def load() -> float:
    """Processes that ran, over the last minute."""
    return os.getloadavg()[0]


def _fields(path: Path) -> dict[str, str]:
    """Those of the first processor, in /proc/cpuinfo."""
    found: dict[str, str] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    return found
