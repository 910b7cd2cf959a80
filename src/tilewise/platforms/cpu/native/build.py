"""Kernels are compiled once for each state of sources, compiler and CPU, and tried in a process that may crash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

import tilewise
from tilewise.environment import Environment
from tilewise.platforms.cpu.machine import Machine
from tilewise.platforms.cpu.native import NoKernels
from tilewise.platforms.cpu.native.kernels import Native

logger = logging.getLogger("tilewise")

SOURCES = Path(__file__).parent / "src"
_CHECK = Path(__file__).parent / "check.py"
COMPILE = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-pthread")
LEVELS = {
    "avx2": ("-mno-avx512f", "-mno-amx-tile", "-mno-amx-bf16", "-mno-amx-int8"),
    "avx512": ("-mno-amx-tile", "-mno-amx-bf16", "-mno-amx-int8"),
}
"""Flags that keep the compiler from using all instructions of the CPU, by the last ones that it may use."""
# What is missing shows when the library is loaded (now), not at the first call.
LINK = ("-shared", "-pthread", "-Wl,-z,now")
_COMPILE_SECONDS, _TRIAL_SECONDS = 300, 120


def flags_for(machine: Machine, level: str | None) -> tuple[str, ...]:
    """Return the compiler's flags; `level` is one of LEVELS, or None for all instructions that the machine has."""
    slow_pairs = ("-DSLOW_PAIRS",) if machine.vendor == "GenuineIntel" else ()  # src/simd.h
    return (*COMPILE, *slow_pairs, *LEVELS.get(level or "", ()))


@dataclass(frozen=True, slots=True)
class Compiler:
    command: tuple[str, ...]
    flags: tuple[str, ...] = COMPILE

    @classmethod
    def find(cls, environment: Mapping[str, str]) -> Compiler:
        """Find the compiler that CXX names, else one by the usual names. Raises NoKernels."""
        named = Environment(environment).cxx.strip()
        wishes = [shlex.split(named)] if named else [["g++"], ["c++"]]
        for program, *arguments in wishes:
            if found := shutil.which(program, path=Environment(environment).search_path):
                return cls((found, *arguments))
        tried = " or ".join(wish[0] for wish in wishes)
        raise NoKernels(f"no C++ compiler ({tried} is not in PATH): install g++, or name one by CXX")

    def __str__(self) -> str:
        return shlex.join(self.command)

    @property
    def identity(self) -> str:
        """Text that changes when another compiler is installed under the name."""
        found = Path(self.command[0]).resolve().stat()
        return f"{self} {found.st_size} {found.st_mtime_ns}"

    def build(self, sources: Iterable[Path], folder: Path) -> Path:
        """Compile sources side by side, and link them to one shared object in `folder`."""
        objects = {source: folder / f"{source.stem}.o" for source in sources}
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda one: self._run(*self.flags, "-c", str(one[0]), "-o", str(one[1])), objects.items()))
        library = folder / "kernels.so"
        self._run(*LINK, *map(str, objects.values()), "-o", str(library))
        return library

    def _run(self, *arguments: str) -> None:
        try:
            found = subprocess.run(
                [*self.command, *arguments], capture_output=True, text=True, errors="replace", timeout=_COMPILE_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NoKernels(f"{self} could not be run: {error}") from error
        if found.returncode != 0:
            raise NoKernels(f"{self} failed ({found.returncode}): {_first_error(found.stderr)}")


def _first_error(output: str) -> str:
    lines = output.strip().splitlines() or ["it said nothing"]
    return next((line for line in lines if "error" in line), lines[-1])


def try_kernels(library: Path) -> dict[str, str]:
    """Return the kernels that are wrong, crash or hang, each with what happened.

    A process that ends too early is started again without the kernels that were tried.
    """
    left_out: dict[str, str] = {}
    done: list[str] = []
    while True:
        lines, ended = _child(library, done)
        begun = None
        for line in lines:
            word, _, rest = line.partition(" ")
            name, _, said = rest.partition(" ")
            if word == "begin":
                begun = name
            elif word in ("right", "wrong") and name == begun:
                done.append(name)
                begun = None
                if word == "wrong":
                    left_out[name] = said
        if not ended:
            return left_out
        if begun is None:
            raise NoKernels(f"built kernels could not be tried: {ended}")
        done.append(begun)
        left_out[begun] = ended


def _child(library: Path, skip: list[str]) -> tuple[list[str], str]:
    """Try kernels in a process; return its lines, and how it ended too early (empty = it did not)."""
    command = [sys.executable, "-P", "-m", "tilewise.platforms.cpu.native.check", str(library), *skip]
    source = str(Path(tilewise.__file__).parent.parent)
    paths = os.pathsep.join(filter(None, (source, Environment.here().python_path)))
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, timeout=_TRIAL_SECONDS, env={**os.environ, "PYTHONPATH": paths}
        )
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        lines = (said if isinstance(said, str) else said.decode()).splitlines()
        return lines, f"took more than {_TRIAL_SECONDS} seconds"
    return found.stdout.splitlines(), _ending(found.returncode, found.stderr)


def _ending(code: int, said: str) -> str:
    if code >= 0:
        return "" if code == 0 else (said.strip().splitlines() or [f"status {code}"])[-1]
    return f"crashed ({signal.Signals(-code).name})"


_PATIENCE = 900
"""Seconds that one process waits for another that builds the same."""


def build(environment: Mapping[str, str], level: str | None = None) -> Native:
    """Return the kernels of this machine, from the cache or new. Raises NoKernels.

    `level` names the last instructions that they may use (`LEVELS`); None = all.
    """
    machine = Machine.here()
    if not machine.has_vectors:
        raise NoKernels("this CPU has no AVX2 with FMA, for which the kernels are written")
    compiler = dataclasses.replace(Compiler.find(environment), flags=flags_for(machine, level))
    entry = Entry(cache_folder(environment), key_of(compiler, machine))
    try:
        return entry.built() or entry.make(compiler)
    except (OSError, Timeout) as error:
        raise NoKernels(f"{entry.folder} cannot keep kernels, XDG_CACHE_HOME names another folder: {error}") from error


def cache_folder(environment: Mapping[str, str]) -> Path:
    return Environment(environment).cache_folder / "kernels"


def key_of(compiler: Compiler, machine: Machine) -> str:
    """Return a digest of whatever the machine code and the verdict on it depend on."""
    sources = [(path.name, path.read_bytes()) for path in (*sorted(SOURCES.iterdir()), _CHECK)]
    parts = (sources, compiler.flags, LINK, compiler.identity, machine.name, machine.revision, sorted(machine.features))
    return hashlib.blake2b(repr(parts).encode(), digest_size=12).hexdigest()


@dataclass(frozen=True, slots=True)
class Entry:
    """The cached files of one key. Only the verdict, written last, makes the others count; it names the object by its
    digest.
    """

    folder: Path
    key: str

    @property
    def library(self) -> Path:
        return self.folder / f"{self.key}.so"

    @property
    def verdict(self) -> Path:
        """JSON of the arguments of `Native`, and of the digest of the object that was tried."""
        return self.folder / f"{self.key}.json"

    def built(self) -> Native | None:
        """Return the kernels; None unless all is there and unharmed."""
        try:
            found = json.loads(self.verdict.read_bytes())
            unharmed = found.pop("digest") == _digest(self.library)
            return Native(self.library, **found) if unharmed else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def make(self, compiler: Compiler) -> Native:
        """Build the kernels. Whoever comes second waits for the first, and finds what it made."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / f"{self.key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.warning("Another process builds kernels for this CPU: waiting for it, some minutes at most")
            lock.acquire(timeout=_PATIENCE)
        try:
            return self.built() or self._make(compiler)
        finally:
            lock.release()

    def _make(self, compiler: Compiler) -> Native:
        started = time.perf_counter()
        logger.warning(
            "Building kernels for this CPU: once, about half a minute on two free cores (TILEWISE_CPU_KERNELS=0 does "
            "without)"
        )
        workshop = self.folder / f"{self.key}.build"
        shutil.rmtree(workshop, ignore_errors=True)  # of a build that was killed
        workshop.mkdir()
        try:
            made = compiler.build(sorted(SOURCES.glob("*.cpp")), workshop)
            left_out, written = try_kernels(made), workshop / "verdict"
            verdict = {"digest": _digest(made), "compiler": str(compiler), "left_out": left_out}
            written.write_text(json.dumps(verdict), encoding="utf-8")
            made.replace(self.library)
            written.replace(self.verdict)
        finally:
            shutil.rmtree(workshop, ignore_errors=True)
        logger.info("Building kernels took %.1f seconds", time.perf_counter() - started)
        return Native(self.library, str(compiler), left_out)


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
