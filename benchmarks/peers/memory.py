"""Peak memory of a process and of those that it started (Linux)."""

from __future__ import annotations

import itertools
from pathlib import Path


def peak_bytes(pid: int) -> int:
    """The highest resident size of a process, and of those below it; pages that they share count for each."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:  # it has ended
        return 0
    own = next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)
    return own + sum(peak_bytes(int(child)) for child in itertools.chain(*children))
