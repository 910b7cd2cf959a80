"""What became of each kernel when it was tried, in a process that may crash."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tilewise
from tilewise.platforms.cpu.native import NoKernels

_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Verdict:
    digest: str
    """Of the shared object that was tried."""
    compiler: str
    left_out: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> Verdict | None:
        try:
            return cls(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, path: Path) -> Path:
        path.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")
        return path


def try_kernels(library: Path) -> dict[str, str]:
    """Kernels that are wrong, crash or hang, each with what happened."""
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
    """Its lines, and how it ended too early; empty = it did not."""
    command = [sys.executable, "-P", "-m", "tilewise.platforms.cpu.native.check", str(library), *skip]
    source = str(Path(tilewise.__file__).parent.parent)
    paths = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, env={**os.environ, "PYTHONPATH": paths}
        )
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        return (said if isinstance(said, str) else said.decode()).splitlines(), f"took more than {_SECONDS} seconds"
    return found.stdout.splitlines(), _ending(found.returncode, found.stderr)


def _ending(code: int, said: str) -> str:
    if code >= 0:
        return "" if code == 0 else (said.strip().splitlines() or [f"status {code}"])[-1]
    return f"crashed ({signal.Signals(-code).name})"
