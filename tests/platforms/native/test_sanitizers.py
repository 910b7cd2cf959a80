"""The kernels under the sanitizers of addresses and of undefined behaviour: all their tests once more (`make
test-sanitize`). Whatever a sanitizer finds ends the process, and says where.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tilewise.platforms.cpu.machine import Machine
from tilewise.platforms.cpu.native.build import LEVELS, SOURCES, Compiler, Entry, cache_folder, flags_for, key_of

pytestmark = pytest.mark.sanitize

ROOT = Path(__file__).parents[3]
FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g1")
TESTS = ("platforms/native/test_kernels.py", "platforms/native/test_capture.py", "platforms/test_ops.py",
         "platforms/test_kv_cache.py", "test_resize.py")  # fmt: skip
"""Without `test_grouped.py`, which builds kernels of every level itself: compilers take hours under a sanitizer."""
_NEEDED = {"avx2": "avx2", "avx512": "avx512f", "all": "amx_tile"}
"""The feature of a CPU without which a level of instructions is the same as the one before."""


def environment_of(level: str, gcc: str) -> dict[str, str]:
    """Return the environment of a process that finds sanitized kernels, and whose allocations are watched."""
    libraries = [_library(gcc, name) for name in ("libasan.so", "libubsan.so", "libstdc++.so")]
    return {
        **os.environ,
        "CXX": shlex.join((gcc, *FLAGS)),
        "XDG_CACHE_HOME": str(ROOT / "build" / "sanitized"),
        "TILEWISE_CPU_KERNELS": "1" if level == "all" else level,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps much for as long as its process lives
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def _library(gcc: str, name: str) -> str:
    found = subprocess.run([gcc, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
    if not Path(found).is_absolute():
        pytest.skip(f"needs {name}, which this compiler does not have")
    return found


def built(environment: dict[str, str], level: str) -> Path:
    """Return the kernels, built with sanitizers and put where an engine in this environment looks for its own.

    They are built here, as the compiler itself would take hours under a sanitizer, and with little optimisation, so
    that no access is left out that the source has. Their trial is a test, and not under its limit of time.
    """
    machine = Machine.here()
    compiler = dataclasses.replace(
        Compiler.find(environment), flags=flags_for(machine, level if level in LEVELS else None)
    )
    entry = Entry(cache_folder(environment), key_of(compiler, machine))
    if not entry.verdict.exists():  # which is written last
        workshop = entry.folder / "workshop"
        workshop.mkdir(parents=True, exist_ok=True)
        plain = dataclasses.replace(compiler, flags=(*compiler.flags, "-O1"))
        plain.build(sorted(SOURCES.glob("*.cpp")), workshop).replace(entry.library)
        digest = hashlib.blake2b(entry.library.read_bytes(), digest_size=16).hexdigest()
        entry.verdict.write_text(json.dumps({"digest": digest, "compiler": str(compiler), "left_out": {}}))
    return entry.library


@dataclasses.dataclass(frozen=True)
class Sanitized:
    """Kernels with sanitizers, and the environment that they need."""

    library: Path
    environment: dict[str, str]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, cwd=ROOT)


@pytest.fixture(scope="module", params=_NEEDED)
def kernels(request: pytest.FixtureRequest) -> Sanitized:
    level, gcc = request.param, shutil.which("g++")
    assert set(LEVELS) < set(_NEEDED)
    if gcc is None or _NEEDED[level] not in Machine.here().features:
        pytest.skip(f"needs g++, and a CPU with {_NEEDED[level]}")
    found = environment_of(level, gcc)
    return Sanitized(built(found, level), found)


def test_every_kernel_passes_its_trial(kernels: Sanitized) -> None:
    """The one of `check.py`, which engines leave a kernel out for."""
    done = kernels.run("-P", "-m", "tilewise.platforms.cpu.native.check", str(kernels.library))
    assert done.returncode == 0, done.stdout + done.stderr
    begun = [line for line in done.stdout.splitlines() if line.startswith("begin ")]
    assert len(begun) > 10
    assert [line for line in done.stdout.splitlines() if line.startswith("right ")] == [
        line.replace("begin", "right") for line in begun
    ]


def test_the_tests_of_kernels_find_nothing(kernels: Sanitized) -> None:
    files = [f"tests/{name}" for name in TESTS]
    done = kernels.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-x", *files)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    assert " passed" in done.stdout


BEYOND = """
import torch
from tilewise.platforms.cpu import CpuPlatform
from tilewise.platforms.kv_cache import PagedLayout
ops = CpuPlatform().ops()
assert "-fsanitize=address,undefined" in ops.native.compiler
cache, query = torch.zeros(2, 4, 16, 1, 64), torch.zeros(1, 1, 64)
layout = PagedLayout(torch.tensor([0, 1]), torch.tensor([16]), torch.tensor([[BLOCK]]), torch.tensor([0]))
print(ops.paged_attention(query, cache, layout, 1.0).shape)
"""


def test_a_block_beyond_the_cache_is_seen(kernels: Sanitized) -> None:
    """These tests can fail: a kernel that reads values behind their end is stopped. (No engine asks for such a block:
    its tables refuse one, see `tests/runner/test_batch.py`.)
    """
    assert kernels.run("-c", BEYOND.replace("BLOCK", "3")).returncode == 0
    done = kernels.run("-c", BEYOND.replace("BLOCK", "4"))
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
