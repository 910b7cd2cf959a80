"""Fuzzing of all targets or of one, each in a process of its own, and a table of what came of it (`make fuzz`).

With an input, that one is tried again, and what comes out of the target is shown.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.fuzz.all_targets import TARGETS
from tests.fuzz.target import Target

FOLDER = Path("build/fuzz")
_STATE = re.compile(r"^#(\d+)\s+(INITED|DONE|NEW|REDUCE|pulse|RELOAD)\s+cov: (\d+)", re.MULTILINE)
_DONE = re.compile(r"^Done \d+ runs in (\d+) second", re.MULTILINE)
_GRACE = 120  # seconds in which a process starts, reads its corpus and tries its last input


@dataclass
class Tally:
    """The figures of a target's campaign."""

    target: str
    executions: int = 0
    seconds: float = 0.0
    coverage: int = 0
    """Branches that were taken."""
    new: int = 0
    """Branches among them that neither seeds nor earlier campaigns had taken."""
    findings: int = 0

    def add(self, log: str, seconds: float) -> None:
        """Add what libFuzzer says of one process; one that did not come to its end took so many seconds."""
        states = [(int(count), kind, int(branches)) for count, kind, branches in _STATE.findall(log)]
        done = _DONE.search(log)
        self.seconds += int(done[1]) if done else seconds
        if not states:
            return
        begun = next((branches for _, kind, branches in states if kind == "INITED"), states[0][2])
        self.executions += states[-1][0]
        self.new += max(0, states[-1][2] - begun)
        self.coverage = max(self.coverage, states[-1][2])

    @property
    def row(self) -> tuple[str, ...]:
        rate = self.executions / self.seconds if self.seconds else 0.0
        counts = (f"{self.executions:,}", f"{rate:,.0f}", f"{self.coverage:,}", f"{self.new:,}", f"{self.findings}")
        return (self.target, *counts)


_HEADS = ("target", "executions", "a second", "branches", "new ones", "findings")


def _printed(row: Sequence[str]) -> None:
    print(f"{row[0]:<22}" + "".join(f"{cell:>12}" for cell in row[1:]), flush=True)


def campaign(target: Target, seconds: float) -> Tally:
    """Fuzz a target for so long, in as many processes as it ends on the way."""
    tally = Tally(target.name)
    for begun in range(20):
        left = round(seconds - tally.seconds)
        if begun and left < 1:
            break
        started = time.monotonic()
        tally.add(_process(target, max(1, left)), time.monotonic() - started)
    tally.findings = len(list(_inputs(target)))
    return tally


def _inputs(target: Target) -> Sequence[Path]:
    """Return the inputs that were noted for a target: those of ours, and those that ended a process."""
    kinds = r"(crash-|timeout-|oom-)?[0-9a-f]{8,}"
    return [path for path in sorted(FOLDER.iterdir()) if re.fullmatch(f"{target.name}-{kinds}", path.name)]


def _process(target: Target, seconds: int) -> str:
    """Run one process to its end; return what it said. libFuzzer ends it without a word, so its files go from here."""
    log = FOLDER / f"{target.name}.log"
    command = [sys.executable, "-m", "tests.fuzz.campaign", target.name, target.check.__module__, str(seconds),
               str(FOLDER)]  # fmt: skip
    with log.open("wb") as file, TemporaryDirectory() as own:
        environment = os.environ | {"TMPDIR": own}
        try:
            subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, timeout=seconds + _GRACE, env=environment)
        except subprocess.TimeoutExpired:
            file.write(b"\nThe process did not end in time.\n")
    return log.read_text(encoding="utf-8", errors="replace")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="of all targets together")
    parser.add_argument("--jobs", type=int, default=1, help="targets at a time")
    parser.add_argument("--target", choices=sorted(TARGETS), help="the only one")
    parser.add_argument("--input", type=Path, help="a file to try again")
    asked = parser.parse_args()
    if asked.input is not None:
        if asked.target is None:
            parser.error("an input belongs to a target: name it, too (FUZZ=name)")
        TARGETS[asked.target].try_bytes(asked.input.read_bytes())
        print(f"{asked.target} let nothing out.")
        return 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    chosen = [TARGETS[name] for name in sorted(TARGETS) if asked.target in (None, name)]
    _printed(_HEADS)
    seconds = 60 * asked.minutes * min(asked.jobs, len(chosen)) / len(chosen)
    findings = 0
    with ThreadPoolExecutor(asked.jobs) as threads:
        for tally in threads.map(lambda target: campaign(target, seconds), chosen):
            findings += tally.findings
            _printed(tally.row)
            for path in _inputs(TARGETS[tally.target]):
                print(f"  make fuzz FUZZ={tally.target} INPUT={path}", flush=True)
    return int(findings > 0)


if __name__ == "__main__":
    sys.exit(main())
