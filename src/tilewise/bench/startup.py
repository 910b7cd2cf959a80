"""The benchmark of a start, from the beginning of its process to the first answer. Each start has its own process.

Cold: the folders in which a first start keeps things (kernels, encoded tiles) are empty. Warm: as they are. Files of
the model are on this machine already, and in its memory from the second start on: it is not the machine that is cold.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tilewise.bench import Say
from tilewise.bench.engine import PERCENTS
from tilewise.bench.figures import Spread
from tilewise.bench.options import StartupOptions
from tilewise.config import EngineConfig
from tilewise.console import Advance, progress_bar
from tilewise.environment import Environment
from tilewise.errors import TilewiseError
from tilewise.weights.checkpoint import find_model

WIDTH = 60
PARTS = {
    "startup": "Startup time",
    "import": "Import time",
    "compilation": "Compilation time",
    "engine": "Engine time",
    "first_answer": "First answer time",
}
"""Parts of a start that are measured -> their titles. The startup is all of it, with the interpreter's own."""


class FailedStart(TilewiseError):
    """A process did not come as far as its first answer."""


Starts = list[dict[str, float]]


def run_startup(
    options: StartupOptions, engine: dict[str, Any], say: Say = print, progress: bool = True
) -> dict[str, Any]:
    """Run the benchmark, and return the result as --output-json has it."""
    config = EngineConfig.of(Environment.here(), **engine)
    model = find_model(
        config.model, config.revision, config.hub, config.download_dir, config.hf_token, mmproj=config.mmproj
    )
    engine = {**engine, "model": str(model), "mmproj": None}
    count = options.num_iters_cold + options.num_iters_warmup + options.num_iters_warm
    with progress_bar("Starts", count, progress) as advance:
        cold = [_cold(engine, advance) for _ in range(options.num_iters_cold)]
        for _ in range(options.num_iters_warmup):
            _start(engine, {}, advance)
        warm = [_start(engine, {}, advance) for _ in range(options.num_iters_warm)]
    bar = "=" * WIDTH
    for line in (bar, "STARTUP TIME BENCHMARK RESULTS", bar):
        say(line)
    for line in (*_lines("COLD STARTUP", cold), "", *_lines("WARM STARTUP", warm), bar):
        say(line)
    return {**_fields("cold", cold), **_fields("warm", warm)}


def _cold(engine: dict[str, Any], advance: Advance) -> dict[str, float]:
    with empty_folders(engine) as (options, environment):
        return _start(options, environment, advance)


@contextmanager
def empty_folders(engine: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """Yield options and environment variables with which a start finds nothing of an earlier one."""
    with tempfile.TemporaryDirectory(prefix="tilewise-cold-") as folder:
        tiles = {"encoder_cache_dir": f"{folder}/tiles"} if "encoder_cache_dir" in engine else {}
        yield {**engine, **tiles}, {"XDG_CACHE_HOME": folder}


def _start(engine: dict[str, Any], environment: dict[str, str], advance: Advance) -> dict[str, float]:
    """Start an engine in a process, and return the seconds of each part. Raises FailedStart."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "tilewise.bench.start_once", json.dumps(engine)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    total = time.perf_counter() - started
    advance(1)
    if done.returncode:
        (last_line,) = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise FailedStart(f"A start ended with status {done.returncode}: {last_line}")
    parts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {"startup": total, **parts}


def _lines(title: str, starts: Starts) -> Iterator[str]:
    yield f"{title}:"
    for part, name in PARTS.items():
        spread = _spread(starts, part)
        yield f"Avg {name.lower()}: {spread.mean:.2f} seconds"
        yield f"{name} percentiles:"
        for percent, value in spread.by_percent().items():
            yield f"  {percent}%: {value:.2f} seconds"


def _fields(name: str, starts: Starts) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in PARTS:
        spread, key = _spread(starts, part), f"{name}_{part}"
        found[f"avg_{key}_time"] = spread.mean
        found[f"{key}_times"] = [start[part] for start in starts]
        found[f"{key}_percentiles"] = spread.by_percent()
    return found


def _spread(starts: Starts, part: str) -> Spread:
    return Spread.of([start[part] for start in starts], PERCENTS)
