"""Memory of the machine and of control groups, from files as the kernel writes them; packages that are not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tilewise.errors import InvalidConfig
from tilewise.host import Memory, available_memory, require_extra
from tilewise.platforms.cpu import CpuPlatform

GIB = 2**30


def machine(root: Path, cgroup: str, total: int = 64, available: int = 48) -> None:
    write(root / "proc/meminfo", f"MemTotal: {total * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {available * 2**20} kB\n")
    write(root / "proc/self/cgroup", cgroup)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def group(folder: Path, limit: str, used: int, cached: int = 0, version: int = 2) -> None:
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}[version]
    key = {1: f"inactive_file 0\ntotal_inactive_file {cached}", 2: f"anon 5\ninactive_file {cached}"}[version]
    for name, text in zip((*names, "memory.stat"), (limit, str(used), key), strict=True):
        write(folder / name, text + "\n")


def test_the_machine_alone(tmp_path):
    machine(tmp_path, "0::/\n")
    assert available_memory(tmp_path) == Memory(64 * GIB, 48 * GIB)


def test_a_container_has_what_its_group_leaves_and_cached_files_are_free(tmp_path):
    machine(tmp_path, "0::/\n")
    group(tmp_path / "sys/fs/cgroup", str(8 * GIB), used=6 * GIB, cached=GIB)
    assert available_memory(tmp_path) == Memory(8 * GIB, 3 * GIB)


def test_a_group_without_limit_or_with_more_than_there_is_changes_nothing(tmp_path):
    machine(tmp_path, "0::/service\n")
    group(tmp_path / "sys/fs/cgroup/service", "max", used=6 * GIB)
    group(tmp_path / "sys/fs/cgroup", str(100 * GIB), used=GIB)
    assert available_memory(tmp_path) == Memory(64 * GIB, 48 * GIB)


def test_the_tightest_of_the_groups_around_counts(tmp_path):
    machine(tmp_path, "0::/slice/service\n")
    group(tmp_path / "sys/fs/cgroup/slice/service", str(16 * GIB), used=GIB)
    group(tmp_path / "sys/fs/cgroup/slice", str(20 * GIB), used=18 * GIB)
    assert available_memory(tmp_path) == Memory(16 * GIB, 2 * GIB)


def test_groups_of_the_first_version(tmp_path):
    machine(tmp_path, "9:cpu:/x\n4:memory:/docker/1\n0::/\n")
    group(tmp_path / "sys/fs/cgroup/memory/docker/1", str(4 * GIB), used=3 * GIB, cached=GIB, version=1)
    group(tmp_path / "sys/fs/cgroup/memory", "9223372036854771712", used=9 * GIB, version=1)
    assert available_memory(tmp_path) == Memory(4 * GIB, 2 * GIB)


def test_a_group_that_is_full_leaves_nothing(tmp_path):
    machine(tmp_path, "0::/\n")
    group(tmp_path / "sys/fs/cgroup", str(GIB), used=GIB + 4096)
    assert available_memory(tmp_path).free == 0


@pytest.mark.parametrize("name", ["total_memory", "free_memory"])
def test_this_machine_has_memory(name):
    assert 2**20 < getattr(CpuPlatform(), name)() < 2**50


def test_free_is_never_more_than_there_is():
    assert CpuPlatform().free_memory() <= CpuPlatform().total_memory()


RAISED = """
import resource
from tilewise.host import allow_many_open_files
resource.setrlimit(resource.RLIMIT_NOFILE, (64, {hard}))
allow_many_open_files()
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize("hard", [300, 4096])
def test_as_many_files_may_be_open_as_the_system_allows(hard):
    code = RAISED.format(hard=hard)
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == f"{hard}\n"


OFFERED = """
from pathlib import Path
from tilewise.host import offer_to_be_killed
offer_to_be_killed(300)
offer_to_be_killed({more})
print(Path("/proc/self/oom_score_adj").read_text())
"""


@pytest.mark.parametrize("more", [200, 900])
def test_a_process_is_offered_on_top_of_what_it_was_before(more):
    score = Path("/proc/self/oom_score_adj")
    had = int(score.read_text()) if score.exists() else 0
    found = subprocess.run([sys.executable, "-c", OFFERED.format(more=more)], capture_output=True, text=True)
    assert found.stdout.strip() == (f"{min(1000, had + 300 + more)}" if score.exists() else "")


def test_an_extra_is_named_by_what_brings_it():
    require_extra("json", "never", "Reading")
    with pytest.raises(InvalidConfig, match=r"^Serving needs no_such_package.part, which is an extra"):
        require_extra("no_such_package.part", "ray", "Serving")
    with pytest.raises(InvalidConfig, match=r"^Drawing needs no_such_package, .* pip install 'tilewise\[plot\]'\.$"):
        require_extra("no_such_package", "plot", "Drawing")
