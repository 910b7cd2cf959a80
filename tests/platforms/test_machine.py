"""Cores, quotas and instruction sets, from files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

from tests.test_host import write
from tilewise.platforms.cpu.machine import Machine

CPUINFO = """\
processor : 0
vendor_id : AuthenticAMD
cpu family : 25
model : 1
model name : AMD EPYC
stepping : 1
flags : fpu fma avx2 avx512f

processor : 1
flags : fpu
"""


def test_the_first_cpu_counts(tmp_path: Path):
    write(tmp_path / "proc/cpuinfo", CPUINFO)
    machine = Machine.here(tmp_path)
    assert (machine.name, machine.revision) == ("AMD EPYC", "25 1 1")
    assert machine.instructions == ("avx2", "fma", "avx512f")
    assert machine.has_vectors
    assert machine.quota is None


def test_a_machine_that_does_not_say_what_it_is(tmp_path: Path):
    machine = Machine.here(tmp_path)
    assert machine.name
    assert machine.cores >= 1
    assert not machine.has_vectors


def test_the_tightest_quota_counts(tmp_path: Path):
    write(tmp_path / "proc/self/cgroup", "0::/slice/service\n")
    write(tmp_path / "sys/fs/cgroup/slice/service/cpu.max", "max 100000\n")
    assert Machine.here(tmp_path).quota is None
    write(tmp_path / "sys/fs/cgroup/slice/cpu.max", "150000 100000\n")
    write(tmp_path / "sys/fs/cgroup/cpu.max", "400000 100000\n")
    assert Machine.here(tmp_path).quota == 1.5


def test_quotas_of_groups_of_the_first_version(tmp_path: Path):
    write(tmp_path / "proc/self/cgroup", "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n")
    folder = tmp_path / "sys/fs/cgroup/cpu,cpuacct/docker/1"
    write(folder / "cpu.cfs_quota_us", "-1\n")
    write(folder / "cpu.cfs_period_us", "100000\n")
    assert Machine.here(tmp_path).quota is None
    write(folder / "cpu.cfs_quota_us", "50000\n")
    assert Machine.here(tmp_path).quota == 0.5
