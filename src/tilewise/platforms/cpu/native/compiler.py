"""Which compiler there is, and what it is told."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tilewise.platforms.cpu.machine import Machine
from tilewise.platforms.cpu.native import NoKernels

COMPILE = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-pthread")
LEVELS = {
    "avx2": ("-mno-avx512f", "-mno-amx-tile", "-mno-amx-bf16", "-mno-amx-int8"),
    "avx512": ("-mno-amx-tile", "-mno-amx-bf16", "-mno-amx-int8"),
}
"""What keeps the compiler from using all instructions of the CPU, by the last ones that it may use."""
# What is missing shows when the library is loaded (now), not at the first call.
LINK = ("-shared", "-pthread", "-Wl,-z,now")
_SECONDS = 300


def flags_for(machine: Machine, level: str | None) -> tuple[str, ...]:
    """`level`: one of LEVELS, or None for all that the machine has."""
    slow_pairs = ("-DSLOW_PAIRS",) if machine.vendor == "GenuineIntel" else ()  # src/simd.h
    return (*COMPILE, *slow_pairs, *LEVELS.get(level or "", ()))


@dataclass(frozen=True, slots=True)
class Compiler:
    command: tuple[str, ...]
    flags: tuple[str, ...] = COMPILE

    @classmethod
    def find(cls, environment: Mapping[str, str]) -> Compiler:
        """CXX, else by the usual names."""
        named = environment.get("CXX", "").strip()
        wishes = [shlex.split(named)] if named else [["g++"], ["c++"]]
        for program, *arguments in wishes:
            if found := shutil.which(program, path=environment.get("PATH")):
                return cls((found, *arguments))
        tried = " or ".join(wish[0] for wish in wishes)
        raise NoKernels(f"no C++ compiler ({tried} is not in PATH): install g++, or name one by CXX")

    def __str__(self) -> str:
        return shlex.join(self.command)

    @property
    def identity(self) -> str:
        """Changes when another compiler is installed under the name."""
        found = Path(self.command[0]).resolve().stat()
        return f"{self} {found.st_size} {found.st_mtime_ns}"

    def build(self, sources: Iterable[Path], folder: Path) -> Path:
        """One shared object in `folder`; sources are compiled side by side."""
        objects = {source: folder / f"{source.stem}.o" for source in sources}
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda one: self._run(*self.flags, "-c", str(one[0]), "-o", str(one[1])), objects.items()))
        library = folder / "kernels.so"
        self._run(*LINK, *map(str, objects.values()), "-o", str(library))
        return library

    def _run(self, *arguments: str) -> None:
        try:
            found = subprocess.run(
                [*self.command, *arguments], capture_output=True, text=True, errors="replace", timeout=_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NoKernels(f"{self} could not be run: {error}") from error
        if found.returncode != 0:
            raise NoKernels(f"{self} failed ({found.returncode}): {_first_error(found.stderr)}")


def _first_error(output: str) -> str:
    lines = output.strip().splitlines() or ["it said nothing"]
    return next((line for line in lines if "error" in line), lines[-1])
