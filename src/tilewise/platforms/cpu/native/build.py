"""The cache of built kernels: one shared object and one verdict for each state of sources, compiler and CPU."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from tilewise.platforms.cpu.machine import Machine
from tilewise.platforms.cpu.native import Built, NoKernels
from tilewise.platforms.cpu.native.compiler import LINK, Compiler, flags_for
from tilewise.platforms.cpu.native.verdict import Verdict, try_kernels

logger = logging.getLogger("tilewise")

SOURCES = Path(__file__).parent / "src"
_CHECK = Path(__file__).parent / "check.py"
_PATIENCE = 900
"""Seconds that one process waits for another that builds the same."""


def build(environment: Mapping[str, str], level: str | None = None) -> Built:
    """The kernels of this machine, from the cache or new. Raises NoKernels.

    `level`: the last of its instructions that they may use (`compiler.LEVELS`); None = all.
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
    return Path(environment.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tilewise" / "kernels"


def key_of(compiler: Compiler, machine: Machine) -> str:
    """Whatever the machine code and the verdict on it depend on."""
    sources = [(path.name, path.read_bytes()) for path in (*sorted(SOURCES.iterdir()), _CHECK)]
    parts = (sources, compiler.flags, LINK, compiler.identity, machine.name, machine.revision, sorted(machine.features))
    return hashlib.blake2b(repr(parts).encode(), digest_size=12).hexdigest()


@dataclass(frozen=True, slots=True)
class Entry:
    """Files of one key. Only the verdict, written last, makes the others count; it names the object by its digest."""

    folder: Path
    key: str

    @property
    def library(self) -> Path:
        return self.folder / f"{self.key}.so"

    def built(self) -> Built | None:
        """None unless all is there and unharmed."""
        verdict = Verdict.read(self.folder / f"{self.key}.json")
        if verdict is None or not self.library.is_file() or verdict.digest != _digest(self.library):
            return None
        return Built(self.library, verdict.compiler, verdict.left_out)

    def make(self, compiler: Compiler) -> Built:
        """Whoever comes second waits for the first, and finds what it made."""
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

    def _make(self, compiler: Compiler) -> Built:
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
            verdict = Verdict(_digest(made), str(compiler), try_kernels(made))
            made.replace(self.library)
            verdict.write(workshop / "verdict").replace(self.folder / f"{self.key}.json")
        finally:
            shutil.rmtree(workshop, ignore_errors=True)
        logger.info("Building kernels took %.1f seconds", time.perf_counter() - started)
        return Built(self.library, verdict.compiler, verdict.left_out)


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
