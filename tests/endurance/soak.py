"""Mixed traffic at saturation for an hour: memory, handles, threads, blocks and tiles stay where they are.

    python -m tests.endurance.soak [--minutes 60] [--clients 24] [--out build/soak.json] [serve's flags]

Every ten seconds the memory of the server's own process, of the engine's and of those that open pictures is read, and
handles and threads of all. The first fifth is warm-up, in which caches fill. Printed is the slope of each series behind
it with a confidence interval of 95 %: a leak is a slope whose interval lies above zero, and that is more than one per
cent an hour. Neighbouring readings depend on each other, so the interval is that of means over ten stretches.
Afterwards, when nobody asks any more, nothing may be held. The exit status is 1 for a leak, for anything held, and for
an answer against the promise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from tests.endurance.kills import left_over, media_workers
from tests.endurance.traffic import DEADLINE, Clients, Ledger
from tests.served import Served, served

PERIOD = 10.0
_STRETCHES = 10
_STUDENT = 2.306
"""The 97.5 % quantile of Student's distribution with 8 degrees of freedom: ten means, and two numbers of a line."""


def resident(process: int) -> dict[str, float]:
    """Return the MiB that a process has in memory: its own, and those that it shares with others."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    return {
        "own": int(values["RssAnon"]) / 1024,
        "shared": (int(values["RssShmem"]) + int(values["RssFile"])) / 1024,
    }


def entries(folder: str) -> int:
    return sum(1 for _ in Path(folder).iterdir())


class Recorder(threading.Thread):
    """A thread that reads what a server holds, again and again."""

    def __init__(self, server: Served) -> None:
        super().__init__(daemon=True)
        self._server = server
        self.ends = threading.Event()
        self.series: dict[str, list[tuple[float, float]]] = {}
        """Readings by name, each with its moment in hours."""
        self._began = time.monotonic()

    def run(self) -> None:
        while not self.ends.wait(PERIOD):
            self.read()

    def read(self) -> None:
        now = (time.monotonic() - self._began) / 3600
        processes = {"server": self._server.process.pid, "engine": self._server.engine_pid}
        found: dict[str, float] = {}
        for name, process in processes.items():
            memory = resident(process)
            found[f"{name}: own memory, MiB"] = memory["own"]
            found[f"{name}: handles"] = entries(f"/proc/{process}/fd")
            found[f"{name}: threads"] = entries(f"/proc/{process}/task")
        workers = media_workers(self._server)
        found["media workers: own memory, MiB"] = sum(resident(worker)["own"] for worker in workers)
        found["media workers: processes"] = len(workers)
        found["tile memory, %"] = 100 * self._server.metric("tilewise:tile_memory_usage_perc")
        for name, value in found.items():
            self.series.setdefault(name, []).append((now, value))


def slope(series: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Return the mean of a series behind its warm-up, its slope an hour, and half of the slope's interval."""
    behind = np.array(series[len(series) // 5 :])
    means = np.array([part.mean(axis=0) for part in np.array_split(behind, _STRETCHES)])
    hours, values = means[:, 0] - means[:, 0].mean(), means[:, 1]
    rise = float(hours @ (values - values.mean()) / (hours @ hours))
    rest = values - values.mean() - rise * hours
    error = float(np.sqrt(rest @ rest / (len(means) - 2) / (hours @ hours)))
    return float(values.mean()), rise, _STUDENT * error


def leaks(series: dict[str, list[tuple[float, float]]]) -> list[str]:
    found = []
    for name, readings in series.items():
        mean, rise, half = slope(readings)
        if rise - half > 0 and rise > 0.01 * max(mean, 1.0):
            found.append(f"{name} grows by {rise:.2f} an hour (+- {half:.2f})")
    return found


def report(ledger: Ledger, series: dict[str, list[tuple[float, float]]], minutes: float) -> None:
    table = Table("what", "mean", "an hour", "+- (95 %)", title=f"{ledger.total} requests in {minutes:g} minutes")
    for name, readings in series.items():
        mean, rise, half = slope(readings)
        table.add_row(name, f"{mean:.1f}", f"{rise:+.2f}", f"{half:.2f}")
    console = Console(width=120)
    console.print(table)
    console.print("outcomes:", dict(ledger.by_outcome()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    parser.add_argument("--out", type=Path, default=Path("build/soak.json"), help="file for all readings")
    args, flags = parser.parse_known_args()
    print(f"seed {args.seed}", flush=True)
    own = ("--request-timeout", f"{DEADLINE:g}", "--mm-processor-cache-gb", "0.05", "--disable-uvicorn-access-log")
    developer = {"VLLM_SERVER_DEV_MODE": "1", "OMP_NUM_THREADS": f"{os.cpu_count()}"}
    with served("demo", *own, *flags, environment=developer) as server:
        ledger, recorder = Ledger(), Recorder(server)
        clients = Clients(server.url, args.clients, ledger, args.seed)
        recorder.start()
        until_then = time.monotonic() + 60 * args.minutes
        asyncio.run(clients.run(lambda: time.monotonic() < until_then))
        recorder.ends.set()
        recorder.join()
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(recorder.series))
        report(ledger, recorder.series, args.minutes)
        wrong = [*leaks(recorder.series), *ledger.unexpected, *left_over(server)]
    for one in wrong[:40]:
        print("against the promise:", one)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
