"""Runs one peer's process and collects what it says: samples, what it lacks, how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Variant:
    """A peer in one precision: who computes, and on which files."""

    peer: str
    precision: str
    python: str
    form: Path

    @property
    def name(self) -> str:
        return f"{self.peer}/{self.precision}"


@dataclass(frozen=True)
class Job:
    """What a process is to do in one round."""

    group: str
    rows: tuple[str, ...]
    round: int
    threads: int
    quick: bool
    words: Path
    limit: float
    """Seconds, after which it is stopped."""

    def command(self, variant: Variant) -> list[str]:
        module = MODULES.get(variant.peer, variant.peer)
        return [
            *(variant.python, "-m", f"benchmarks.peers.{module}"),
            *("--form", str(variant.form), "--precision", variant.precision, "--group", self.group),
            *("--threads", str(self.threads), "--round", str(self.round), "--words", str(self.words)),
            *(["--quick"] if self.quick else []),
            *("--rows", *self.rows),
        ]


MODULES = {"transformers": "transformers_", "openvino": "openvino_"}
"""Modules that may not have the name of what they import."""


@dataclass
class Outcome:
    """Filled as the process speaks."""

    seconds: float = 0.0
    samples: list[tuple[str, float]] = field(default_factory=list)
    prompt_tokens: dict[str, int] = field(default_factory=dict)
    lacks: dict[str, str] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)
    failure: str | None = None

    def take(self, line: dict[str, Any], since: float) -> None:
        if "answered" in line:
            self.samples.append(("start", time.perf_counter() - since))
        elif "about" in line:
            self.about = line["about"]
        elif "lacks" in line:
            self.lacks[line["lacks"]] = line["why"]
        else:
            self.samples.append((line["row"], line["value"]))
            if line["prompt_tokens"]:
                self.prompt_tokens[line["row"]] = line["prompt_tokens"]


def launch(variant: Variant, job: Job) -> Outcome:
    """Runs to the end, or to the limit. What was measured before a failure stays."""
    outcome = Outcome()
    with tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            job.command(variant),
            cwd=ROOT,
            env=_environment(variant, job.threads),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        stop = threading.Timer(job.limit, os.killpg, (process.pid, signal.SIGKILL))
        stop.start()
        assert process.stdout
        for line in process.stdout:
            outcome.take(json.loads(line), started)
        status = process.wait()
        stop.cancel()
        outcome.seconds = time.perf_counter() - started
        if status:
            outcome.failure = _why(status, outcome.seconds, job.limit, errors)
    return outcome


def _environment(variant: Variant, threads: int) -> dict[str, str]:
    """Its own interpreter's packages, no network, and as many threads as everybody."""
    ours = {"PYTHONPATH": str(ROOT / "src")} if variant.peer == "tilewise" else {}
    rest = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return rest | ours | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def _why(status: int, seconds: float, limit: float, errors: IO[bytes]) -> str:
    if status == -signal.SIGKILL and seconds >= limit:
        return f"stopped after {limit:.0f} s"
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    errors.seek(0)
    lines = [line for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
    return (lines or [f"exit status {status}"])[-1][:300]
