"""Mixed requests while processes are killed at random: every client gets an answer or a documented error, in time.

    python -m tests.endurance.kills [--requests 20000] [--clients 48] [--every 10] [serve's flags]

Every few seconds the engine's process or one that opens pictures is killed, by SIGKILL. In the end nothing may run,
wait, or hold blocks or tiles, and the server answers as in the beginning. Printed are outcomes by kind of request, how
long each killed engine was away, and what was against the promise; the exit status is 1 if anything was.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import statistics
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from tests.endurance.traffic import DEADLINE, Clients, Ledger
from tests.served import Served, served, until

LOG = Path("build/kills.log")


def media_workers(server: Served) -> list[int]:
    """Return the processes that open pictures: grandchildren of the server's, below the one that forks them."""
    found = []
    for process in _children(server.process.pid):
        if b"cut_worker" in Path(f"/proc/{process}/cmdline").read_bytes():
            found += _children(process)
    return found


def _children(process: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


class Killer(threading.Thread):
    """A thread that kills a process every so many seconds, and measures how long an engine is away."""

    def __init__(self, server: Served, every: float, seed: int) -> None:
        super().__init__(daemon=True)
        self._server, self._every, self._chance = server, every, random.Random(seed)
        self.ends = threading.Event()
        self.away: list[float] = []
        """Seconds from each kill of an engine to the next moment at which /health was 200."""
        self.workers_killed = 0

    def run(self) -> None:
        while not self.ends.wait(self._every * self._chance.uniform(0.5, 1.5)):
            if self._chance.random() < 0.5:
                self._kill_engine()
            elif workers := media_workers(self._server):
                with suppress(ProcessLookupError):
                    os.kill(self._chance.choice(workers), signal.SIGKILL)
                    self.workers_killed += 1

    def _kill_engine(self) -> None:
        os.kill(self._server.engine_pid, signal.SIGKILL)
        began = time.monotonic()
        until(lambda: not self._is_up())
        until(self._is_up)
        self.away.append(time.monotonic() - began)

    def _is_up(self) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"{self._server.url}/health", timeout=60).status_code == 200
        return False


def left_over(server: Served) -> list[str]:
    """Wait until nothing runs, and return what is still held then."""
    running = ("vllm:num_requests_running", "vllm:num_requests_waiting")
    with suppress(AssertionError):
        until(lambda: not any(map(server.metric, running)), 60)
    httpx.post(f"{server.url}/reset_mm_cache")
    names = (*running, "vllm:kv_cache_usage_perc", "tilewise:tile_memory_usage_perc")
    with suppress(AssertionError):
        until(lambda: not any(map(server.metric, names)), 10)
    return [f"{name} is {server.metric(name):g}" for name in names if server.metric(name)]


def outcome_table(ledger: Ledger) -> Table:
    outcomes = sorted(ledger.by_outcome(), key=lambda outcome: -ledger.by_outcome()[outcome])
    table = Table("request", *outcomes, title=f"{ledger.total} requests, the slowest took {ledger.slowest:.1f} s")
    for kind in sorted({kind for kind, _ in ledger.outcomes}):
        table.add_row(kind, *(f"{ledger.outcomes[kind, outcome] or ''}" for outcome in outcomes))
    table.add_row("all", *(f"{ledger.by_outcome()[outcome]}" for outcome in outcomes))
    return table


def report(ledger: Ledger, killer: Killer) -> None:
    console = Console(width=160)
    console.print(outcome_table(ledger))
    if killer.away:
        median, worst = statistics.median(killer.away), max(killer.away)
        console.print(f"{len(killer.away)} engines killed, away for {median:.1f} s (median), {worst:.1f} s (worst)")
    console.print(f"{killer.workers_killed} processes that open pictures killed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=48)
    parser.add_argument("--every", type=float, default=10, help="seconds between kills, on average")
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    args, flags = parser.parse_known_args()
    print(f"seed {args.seed}", flush=True)
    own = ("--request-timeout", f"{DEADLINE:g}", "--max-engine-restarts", "1000000", "--max-num-queued-reqs", "32")
    developer = {"VLLM_SERVER_DEV_MODE": "1", "OMP_NUM_THREADS": f"{os.cpu_count()}"}
    with served("demo", *own, "--disable-uvicorn-access-log", *flags, environment=developer) as server:
        ledger, killer = Ledger(), Killer(server, args.every, args.seed)
        clients = Clients(server.url, args.clients, ledger, args.seed)
        killer.start()
        asyncio.run(clients.run(lambda: clients.asked < args.requests))
        killer.ends.set()
        killer.join()
        report(ledger, killer)
        wrong = [*ledger.unexpected, *left_over(server)]
        if ledger.total != clients.asked:
            wrong.append(f"{clients.asked} were asked, and {ledger.total} have an outcome")
    for one in wrong[:40]:
        print("against the promise:", one)
    if wrong:
        LOG.parent.mkdir(exist_ok=True)
        LOG.write_text(server.log)
        print(f"the server's log is in {LOG}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
