"""The machine around this process, or what a container leaves of it: no torch is needed to ask.

Control groups of both versions may allow less than the machine has. Each lies within others, and the tightest one
counts. Source: `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/` of the Linux kernel.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


def control_groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield this process' groups that may limit what the controller counts, and the visible ones around them."""
    try:
        lines = (root / "proc" / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            mount = root / "sys" / "fs" / "cgroup" / controllers
            inner = mount / path.lstrip("/")
            yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(mount))


def read_words(path: Path) -> list[str]:
    """Return the words of a small file; none if there is no such file."""
    try:
        return path.read_text().split()
    except OSError:
        return []


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of a machine, or of a part of it, in bytes."""

    total: int
    free: int
    """Bytes that can still be taken, those of the page cache among them."""


def available_memory(root: Path = Path("/")) -> Memory:
    """Return the machine's memory, or that of the tightest control group. `root` is where /proc and /sys are."""
    found = [machine_memory(root), *_group_memories(root)]
    return Memory(min(memory.total for memory in found), min(memory.free for memory in found))


def machine_memory(root: Path = Path("/")) -> Memory:
    """Return the physical memory; what is free of it is the kernel's estimate, or half without one."""
    values = _table(root / "proc" / "meminfo")
    total = values.get("MemTotal:", 0) * 1024 or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Memory(total, values.get("MemAvailable:", total // 2048) * 1024)


def _group_memories(root: Path) -> Iterator[Memory]:
    for folder in control_groups(root, "memory"):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
        if limit is not None:
            # Cached files that nobody has read lately go when memory is needed, but are counted as used.
            statistics = _table(folder / "memory.stat")
            cached = statistics.get("total_inactive_file", statistics.get("inactive_file", 0))
            yield Memory(limit, max(0, limit - used + cached))


def _number(path: Path) -> int | None:
    """Return the number in a file; None if there is no such file, or no limit."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _table(path: Path) -> dict[str, int]:
    """Read a file whose lines have a name and a number; nothing if there is no such file."""
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) >= 2 and row[1].isdecimal()}


_LOOKS = "1000"
"""Times that an idle OpenMP thread looks for work before it sleeps: some microseconds. GNU's default is milliseconds,
in which idle threads keep cores from others: the kernels' own threads, the server beside the engine, other programs."""


def short_waits(environment: Mapping[str, str]) -> dict[str, str]:
    """Return variables to set so that idle threads wait briefly; none if the user has said how threads wait."""
    said = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & environment.keys()
    return {} if said else {"GOMP_SPINCOUNT": _LOOKS}
