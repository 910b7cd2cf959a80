"""Building kernels on machines that lack what it takes: each ends in an engine that works, and a reason that helps."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import tilewise
from tests.platforms.native import quick_compiler
from tilewise.errors import InvalidConfig
from tilewise.platforms.cpu import CpuPlatform, find_kernels
from tilewise.platforms.cpu.machine import Machine
from tilewise.platforms.cpu.native import NoKernels
from tilewise.platforms.cpu.native import build as build_module
from tilewise.platforms.cpu.native.build import Entry, build
from tilewise.platforms.cpu.native_ops import NativeCpuOps
from tilewise.platforms.forms import Dense
from tilewise.platforms.ops import TorchOps

pytestmark = pytest.mark.skipif(
    not Machine.here().has_vectors or shutil.which("g++") is None, reason="kernels need GCC, AVX2 and FMA"
)
BROKEN = {
    "rms_norm": ("rows.cpp", ""),
    "gelu": ("rows.cpp", "*(volatile int*)8 = 1;"),
    "resize_down": ("resize.cpp", ""),
}
"""Bodies that do nothing, and that crash."""


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment whose compiler is quick: it does not optimise, and compiles nothing twice."""
    folder = tmp_path_factory.mktemp("hasty")
    command = shlex.join([sys.executable, "-S", quick_compiler.__file__, str(folder), str(shutil.which("g++"))])
    return {**os.environ, "CXX": str(program(folder / "g++", f'exec {command} "$@"'))}


@pytest.fixture(scope="module")
def warm(hasty: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One in whose cache the kernels are."""
    environment = {**hasty, "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("warm"))}
    build(environment)
    return environment


@pytest.fixture
def environment(hasty: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """One with an empty cache."""
    return {**hasty, "XDG_CACHE_HOME": str(tmp_path)}


@pytest.fixture
def copied(warm: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """One with a warm cache of the test's own."""
    shutil.copytree(warm["XDG_CACHE_HOME"], tmp_path, dirs_exist_ok=True)
    return {**warm, "XDG_CACHE_HOME": str(tmp_path)}


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def files(environment: dict[str, str]) -> list[str]:
    folder = Path(environment["XDG_CACHE_HOME"]) / "tilewise" / "kernels"
    return sorted(path.suffix for path in folder.iterdir() if path.suffix != ".lock")


def refusal(environment: dict[str, str]) -> str:
    with pytest.raises(NoKernels) as caught:
        build(environment)
    return str(caught.value)


def test_all_kernels_of_this_machine_are_right(warm: dict[str, str]) -> None:
    assert build(warm).left_out == {}
    assert files(warm) == [".json", ".so"]


FEATURES = set(Machine.here().features)
LEVELS = {
    "avx2": (("avx2",), "AVX2", ""),
    "avx512": (("avx512f", "avx512_vnni"), "AVX-512 with dot products", ""),
    "avx512 and pairs": (("avx512_bf16",), "AVX-512 with dot products", "-USLOW_PAIRS"),
}
"""What a CPU has to have, what products say then, and what else the compiler is told."""


@pytest.mark.parametrize(
    "name", ["avx2", *(pytest.param(name, marks=pytest.mark.slow) for name in LEVELS if name != "avx2")]
)
def test_kernels_of_fewer_instructions_are_right(
    hasty: dict[str, str], warm: dict[str, str], tmp_path: Path, name: str
) -> None:
    needed, said, flags = LEVELS[name]
    if missing := set(needed) - FEATURES:
        pytest.skip(f"this CPU has no {', '.join(missing)}")
    if "avx512f" in FEATURES:
        wrapper = program(tmp_path / "g++", f'exec {hasty["CXX"]} "$@" {flags}')
        found = build({**hasty, "CXX": str(wrapper), "XDG_CACHE_HOME": str(tmp_path)}, name.split()[0])
    else:  # AVX2 is all that there is
        found = build(warm)
    assert found.left_out == {}
    assert found.instructions == said
    ops, x = NativeCpuOps(found), torch.randn(70, 70).bfloat16()
    for weight in (
        ops.store([Dense(torch.randn(33, 70).bfloat16())], None),
        ops.store_int8([Dense(torch.randn(33, 70))], None),
    ):
        rows = x.to(weight.panels.dtype) if weight.panels.dtype != torch.int8 else x
        whole = weight.apply(rows, ops)
        assert all(torch.equal(weight.apply(rows[:some], ops), whole[:some]) for some in (1, 7, 16, 33))


def test_tiles_are_used_where_they_are(warm: dict[str, str]) -> None:
    if missing := {"amx_tile", "amx_bf16", "amx_int8"} - FEATURES:
        pytest.skip(f"this CPU has no {', '.join(sorted(missing))}")
    assert build(warm).instructions in ("AMX", "AVX-512, as the system refuses AMX")


def test_what_is_cached_is_not_built_again(copied: dict[str, str], tmp_path: Path) -> None:
    library = build(copied).path
    before = library.stat().st_mtime_ns
    assert build(copied).path.stat().st_mtime_ns == before


def test_no_compiler(environment: dict[str, str], tmp_path: Path) -> None:
    assert "no C++ compiler (g++ or c++ is not in PATH): install g++" in refusal(
        {**environment, "CXX": "", "PATH": str(tmp_path)}
    )
    assert "nvcc-of-old is not in PATH" in refusal({**environment, "CXX": "nvcc-of-old -O1"})


def test_a_compiler_that_fails_is_quoted(environment: dict[str, str], tmp_path: Path) -> None:
    broken = program(tmp_path / "g++", "echo 'simd.h:1: error: no such thing' >&2; exit 4")
    assert f"{broken} failed (4): simd.h:1: error: no such thing" in refusal(
        {**environment, "CXX": "", "PATH": f"{tmp_path}:/bin"}
    )
    assert files(environment) == []


def test_a_compiler_that_is_killed(environment: dict[str, str], tmp_path: Path) -> None:
    program(tmp_path / "g++", "kill -9 $$")
    assert "failed (-9)" in refusal({**environment, "CXX": "", "PATH": f"{tmp_path}:/bin"})


def test_arguments_of_cxx_are_passed_on(environment: dict[str, str], tmp_path: Path) -> None:
    failing = program(tmp_path / "wrapper", 'echo "error: $1 $2" >&2; exit 1')
    assert "error: --mark two words" in refusal({**environment, "CXX": f"{failing} --mark 'two words'"})


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    """A file is where the folder would be: no rights keep root from writing, but this does."""
    (tmp_path / "tilewise").write_text("")
    assert "XDG_CACHE_HOME names another folder" in refusal({**os.environ, "XDG_CACHE_HOME": str(tmp_path)})


def test_a_verdict_that_is_torn_counts_for_nothing(copied: dict[str, str]) -> None:
    library = build(copied).path
    entry = Entry(library.parent, library.stem)
    assert entry.built() is not None
    verdict = library.with_suffix(".json")
    verdict.write_bytes(verdict.read_bytes()[:20])
    assert entry.built() is None


def test_a_damaged_cache_is_mended(copied: dict[str, str]) -> None:
    folder = Path(copied["XDG_CACHE_HOME"]) / "tilewise" / "kernels"
    [library] = folder.glob("*.so")  # not by `build`: it is not to be loaded when its bytes go
    library.write_bytes(library.read_bytes()[:5000])
    again = build(copied)
    assert again.path == library
    x = torch.randn(3, 33)
    close = NativeCpuOps(again).gelu(x)
    torch.testing.assert_close(close, torch.nn.functional.gelu(x), atol=1e-5, rtol=1e-5)
    assert files(copied) == [".json", ".so"]


def test_kernels_that_are_wrong_or_crash_are_left_out_alone(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = tmp_path / "sources"
    shutil.copytree(build_module.SOURCES, sources)
    for name, (file, body) in BROKEN.items():
        head, rest = (sources / file).read_text().split(f"KERNEL void {name}(", 1)
        arguments, behind = rest.split("{\n", 1)
        (sources / file).write_text(f"{head}KERNEL void {name}({arguments}{{ {body} return;\n{behind}")
    monkeypatch.setattr(build_module, "SOURCES", sources)
    found = build(environment)
    assert found.left_out.keys() == {"rms_norm", "gelu", "resize"}
    assert "differs from the reference" in found.left_out["rms_norm"]
    assert found.left_out["gelu"] == "crashed (SIGSEGV)"
    assert "differs from Pillow" in found.left_out["resize"]
    ops, x, weight = NativeCpuOps(found), torch.randn(3, 33), torch.randn(33)
    assert torch.equal(ops.gelu(x), TorchOps().gelu(x))
    assert torch.equal(ops.rms_norm(x, weight, 1e-6), TorchOps().rms_norm(x, weight, 1e-6))


def start_building(environment: dict[str, str]) -> subprocess.Popen[str]:
    code = "import os\nfrom tilewise.platforms.cpu.native.build import build\nprint(build(os.environ).path)"
    paths = {"PYTHONPATH": str(Path(tilewise.__file__).parent.parent)}
    return subprocess.Popen(
        [sys.executable, "-c", code], env={**environment, **paths}, text=True, stdout=subprocess.PIPE
    )


def test_two_processes_build_once(environment: dict[str, str], tmp_path: Path) -> None:
    """A compiler that counts itself."""
    counting = program(tmp_path / "g++", f'echo x >> {tmp_path}/count; exec {environment["CXX"]} "$@"')
    slowed = {**environment, "CXX": str(counting)}
    both = [start_building(slowed) for _ in range(2)]
    paths = {process.communicate()[0] for process in both}
    assert len(paths) == 1
    sources = len(list(build_module.SOURCES.glob("*.cpp")))
    assert (tmp_path / "count").read_text() == "x\n" * (sources + 1)


def test_a_build_that_was_killed_does_not_keep_the_next_from_building(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """The first compiler tells that it runs, and never ends."""
    waiting = program(tmp_path / "g++", f"[ -e {tmp_path}/free ] && exec {environment['CXX']} \"$@\"\n"
                      f"echo $$ >> {tmp_path}/running; exec sleep 1000")  # fmt: skip
    environment["CXX"] = str(waiting)
    process = start_building(environment)
    while not (tmp_path / "running").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for line in (tmp_path / "running").read_text().split():
        os.kill(int(line), signal.SIGKILL)
    assert ".build" in files(environment)
    (tmp_path / "free").touch()
    assert build(environment).left_out == {}
    assert files(environment) == [".json", ".so"]


@pytest.mark.parametrize("value", ["0", "off", "False"])
def test_the_switch(value: str) -> None:
    with pytest.raises(NoKernels, match=f"switched off by TILEWISE_CPU_KERNELS={value}"):
        find_kernels({**os.environ, "TILEWISE_CPU_KERNELS": value})


def test_a_switch_that_means_nothing_is_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"TILEWISE_CPU_KERNELS must be 0 .*, avx2, avx512.*found 'avx3'"):
        find_kernels({**os.environ, "TILEWISE_CPU_KERNELS": "avx3"})


def test_without_kernels_the_platform_has_the_ops_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWISE_CPU_KERNELS", "0")
    platform = CpuPlatform()
    assert type(platform.ops()) is TorchOps
    diagnosis = platform.diagnose()
    assert {choice.path for choice in diagnosis.choices} == {"torch", "Pillow"}
    assert "TILEWISE_CPU_KERNELS=0" in diagnosis.facts["kernels"]
