"""How much memory this machine has, and how much of it a container leaves to its processes.

Of the control groups around a process, the tightest one counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tilewise.host.groups import groups


@dataclass(frozen=True, slots=True)
class Memory:
    total: int
    free: int
    """Bytes that can still be taken; the page cache can."""


def available_memory(root: Path = Path("/")) -> Memory:
    """The machine's, or that of the tightest control group. `root` is where /proc and /sys are."""
    found = [machine_memory(root), *_group_memories(root)]
    return Memory(min(memory.total for memory in found), min(memory.free for memory in found))


def machine_memory(root: Path = Path("/")) -> Memory:
    """Physical memory; what is free of it as the kernel estimates it where it does, else half."""
    values = _table(root / "proc" / "meminfo")
    total = values.get("MemTotal:", 0) * 1024 or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Memory(total, values.get("MemAvailable:", total // 2048) * 1024)


def _group_memories(root: Path) -> Iterator[Memory]:
    for folder in groups(root, "memory"):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
        if limit is not None:
            # Cached files that nobody has read lately go when memory is needed, but are counted as used.
            statistics = _table(folder / "memory.stat")
            cached = statistics.get("total_inactive_file", statistics.get("inactive_file", 0))
            yield Memory(limit, max(0, limit - used + cached))


def _number(path: Path) -> int | None:
    """The file's number; None if there is no such file, or no limit."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _table(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) >= 2 and row[1].isdecimal()}
