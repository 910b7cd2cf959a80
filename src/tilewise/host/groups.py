"""The control groups around this process: folders of files in which Linux says what a container may use.

Groups of both versions may hold less than the machine; each lies within others, and the tightest one counts.
Source: `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/` of the Linux kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def groups(root: Path, controller: str) -> Iterator[Path]:
    """This process' groups that may limit what the controller counts, and those around them, as far as can be seen."""
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


def words(path: Path) -> list[str]:
    """The words of a small file; none if there is no such file."""
    try:
        return path.read_text().split()
    except OSError:
        return []
