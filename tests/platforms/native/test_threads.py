"""Threads of the kernels: results do not depend on how many there are, who calls, or what else runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.platforms.test_ops import noise
from tilewise.platforms.cpu import CpuPlatform
from tilewise.platforms.cpu.native import NoKernels
from tilewise.platforms.forms import Dense

OPS = CpuPlatform().ops()
pytestmark = pytest.mark.skipif(isinstance(CpuPlatform().kernels, NoKernels), reason="kernels cannot be built here")


@pytest.fixture
def four_threads() -> Iterator[None]:
    """More than many a machine has cores, so that some have to wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
def test_callers_at_the_same_time_get_what_they_get_alone() -> None:
    weights = [OPS.store([Dense(noise(512, 256, seed=seed))], None) for seed in range(4)]
    rows = [noise(count, 256, seed=count) for count in (1, 7, 100, 300)]
    torch.set_num_threads(1)
    alone = [[weight.apply(x, OPS) for x in rows] for weight in weights]
    torch.set_num_threads(4)

    def compute(number: int) -> bool:
        found = [weights[number % 4].apply(x, OPS) for x in rows]
        return all(torch.equal(one, other) for one, other in zip(found, alone[number % 4], strict=True))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(compute, range(120)))


@pytest.mark.usefixtures("four_threads")
def test_fewer_threads_after_more() -> None:
    """Threads that a smaller call does not want leave its tasks alone: the scratch of each has its own number."""
    weight, x = OPS.store([Dense(noise(2048, 256))], None), noise(90, 256)
    expected = weight.apply(x, OPS)
    for count in (4, 2, 3, 1, 2) * 20:
        torch.set_num_threads(count)
        assert torch.equal(weight.apply(x, OPS), expected)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core has nowhere to bind to")
def test_threads_are_bound_where_those_of_openmp_are() -> None:
    """OMP_PROC_BIND keeps the first thread on one core; the second would inherit that, and share it."""
    code = """
import os, time, torch
from tilewise.platforms.cpu import CpuPlatform
from tilewise.platforms.forms import Dense
ops = CpuPlatform().ops()
ops.store([Dense(torch.randn(2048, 512))], None).apply(torch.randn(64, 512), ops)
for attempt in range(100):  # a thread that has only just begun is where its creator is
    cores = {str(os.sched_getaffinity(int(task))) for task in os.listdir('/proc/self/task')}
    if len(cores) > 1:
        break
    time.sleep(0.05)
print(*cores, sep=';')
"""
    binding = {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores", "OMP_NUM_THREADS": "2"}
    ran = subprocess.run([sys.executable, "-c", code], env={**os.environ, **binding}, capture_output=True, check=True)
    cores = set(ran.stdout.decode().strip().split(";"))
    assert len(cores) >= 2, cores
    assert all(core.count(",") == 0 for core in cores), cores
