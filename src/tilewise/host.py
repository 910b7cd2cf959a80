"""The machine around this process, or what a container leaves of it, and what is installed on it: no torch is needed.

Control groups of both versions may allow less than the machine has. Each lies within others, and the tightest one
counts. Source: `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/` of the Linux kernel.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from tilewise.environment import Environment
from tilewise.errors import InvalidConfig
from tilewise.units import GIB, in_bytes

logger = logging.getLogger("tilewise")
_LARGEST_CACHE = 4 * GIB
"""Most bytes that a cache takes unless it is told how many."""
DEFAULT_URL = "http://127.0.0.1:8000/v1"
"""Address at which a server on this machine is asked, unless another is named."""


def is_here(url: str) -> bool:
    """Return whether a URL names this machine, which a proxy does not know."""
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def control_groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield this process' groups that may limit what the controller counts, and the visible ones around them."""
    for line in _text(root / "proc" / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            mount = root / "sys" / "fs" / "cgroup" / controllers
            inner = mount / path.lstrip("/")
            yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(mount))


def read_words(path: Path) -> list[str]:
    """Return the words of a small file; none if there is no such file."""
    return _text(path).split()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Let processes that are started inside begin with Ctrl-C blocked, which all processes of a terminal get.

    It is for the first of them to decide. What comes meanwhile reaches this one afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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


def cache_bytes(gib: float | None, what: str, option: str) -> int:
    """Return the bytes that are so many GiB; None = 4, or a quarter of what machine or container has free, if less.

    What was chosen is logged: `what` is kept, and the `option` by which to choose.
    """
    if gib is not None:
        return int(gib * GIB)
    free = available_memory().free
    bound = min(_LARGEST_CACHE, free // 4)
    why = "4 GiB" if bound == _LARGEST_CACHE else f"a quarter of the {in_bytes(free)} that are free"
    logger.info("%s: kept in up to %s (%s; %s sets it)", what, in_bytes(bound), why, option)
    return bound


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
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _table(path: Path) -> dict[str, int]:
    """Read a file whose lines have a name and a number; nothing if there is no such file."""
    rows = [line.split() for line in _text(path).splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) >= 2 and row[1].isdecimal()}


_LOOKS = "1000"
"""Times that an idle OpenMP thread looks for work before it sleeps: some microseconds. GNU's default is milliseconds,
in which idle threads keep cores from others: the kernels' own threads, the server beside the engine, other programs."""


def usable_cpus() -> int:
    """Return the CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_MOST_FILES = 65_536


def allow_many_open_files() -> None:
    """Raise this process's limit of open files, and so of connections, as far as the system lets it, up to 65536.

    Shells and services begin with 1024, and a process whose limit is reached cannot even accept a connection to
    refuse it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(_MOST_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def offer_to_be_killed(more: int) -> None:
    """Have the kernel end this process before others when memory ends; `more`, of 1000, is added to what it had.

    Of all processes of a server the one that listens is the last that should go: the engine comes back in seconds, and
    a process that opens media costs nobody anything.
    """
    with suppress(OSError, ValueError):  # no Linux
        score = Path("/proc/self/oom_score_adj")
        score.write_text(f"{min(1000, int(score.read_text()) + more)}")


def short_waits(environment: Mapping[str, str]) -> dict[str, str]:
    """Return variables to set so that idle threads wait briefly; none if the user has said how threads wait."""
    return {} if Environment(environment).says_how_threads_wait else {"GOMP_SPINCOUNT": _LOOKS}


def require_extra(package: str, extra: str, work: str) -> None:
    """Raise InvalidConfig if a package that few commands need is not there, naming the extra that brings it.

    It is asked for before work begins that could not end without it.
    """
    try:
        found = find_spec(package)
    except ModuleNotFoundError:  # of a module in a package that is not there
        found = None
    if found is None or found.origin is None:  # a folder of that name, which Python takes for a package of no modules
        raise InvalidConfig(f"{work} needs {package}, which is an extra: pip install 'tilewise[{extra}]'.")
