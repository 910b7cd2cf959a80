"""What a server does when memory ends, the clock jumps, and ten thousand ask at once: each a real one, beside traffic.

    python -m tests.endurance.faults [memory] [clock] [queue] [--seconds 60] [--clients 24] [serve's flags]

* memory: the kernel lets all processes of the server have a little more than they hold (a cgroup, as a container has),
  while pictures of 80 megapixels are among what is asked. It kills whom it wants.
* clock: the wall clock goes ahead by a day, back by two, and ahead again, every few seconds (a library that is loaded
  before all others answers for the kernel).
* queue: 10,000 requests at the same moment, over as many connections.

Every request has one outcome, within its deadline: an answer or a documented error. Afterwards nothing may be held, and
the server answers as in the beginning. The exit status is 1 if anything was against that.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from rich.console import Console

from tests.endurance.kills import left_over, outcome_table
from tests.endurance.soak import resident
from tests.endurance.traffic import DEADLINE, Ask, Clients, Ledger
from tests.served import Served
from tilewise.host import allow_many_open_files

AT_ONCE = 10_000
_HEADROOM = 48 << 20
"""Bytes that the server's processes may have beyond what they hold: a large picture wants five times that."""
_LARGE = (10_000, 8_000)
_CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long ahead(void) {
    char text[32] = {0};
    int file = open(getenv("CLOCK_AHEAD"), O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    if (read(file, text, sizeof text - 1) < 0) text[0] = 0;
    close(file);
    return atol(text);
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (!failed && clock == CLOCK_REALTIME) now->tv_sec += ahead();
    return failed;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *kept) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (kept) *kept = now.tv_sec;
    return now.tv_sec;
}
"""
"""A C library in which the wall clock is as many seconds ahead as a file says. Monotonic clocks are as they were."""


class MemoryGroup:
    """A cgroup below ours (version 1 or 2) that bounds the memory of the processes in it. Needs root."""

    def __init__(self) -> None:
        groups = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
        self._first = "memory" in groups
        root = Path("/sys/fs/cgroup/memory" if self._first else "/sys/fs/cgroup")
        ours = groups["memory" if self._first else ""].lstrip("/")
        self._folder = root / ours / f"tilewise-{os.getpid()}"
        self._folder.mkdir()

    def take(self, process: int) -> None:
        """Take a process in, and all that it starts from now on."""
        (self._folder / "cgroup.procs").write_text(f"{process}")

    @property
    def held(self) -> int:
        """Bytes that the processes hold, without those of files, which the kernel takes back when it needs them."""
        lines = dict(line.split() for line in (self._folder / "memory.stat").read_text().splitlines())
        names = ("total_rss", "total_shmem") if self._first else ("anon", "shmem")
        return sum(int(lines[name]) for name in names)

    def limit(self, size: int) -> None:
        (self._folder / ("memory.limit_in_bytes" if self._first else "memory.max")).write_text(f"{size}")

    @property
    def killed(self) -> int:
        """Processes that the kernel has ended for want of memory."""
        text = (self._folder / ("memory.oom_control" if self._first else "memory.events")).read_text()
        return int(dict(line.split() for line in text.splitlines())["oom_kill"])

    def remove(self) -> None:
        self._folder.rmdir()


class Watch(threading.Thread):
    """A thread that asks for /health all the time, over new connections: how long it takes, and when it is not 200."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url, self.ends = url, threading.Event()
        self.took: list[float] = []
        self.away: list[float] = []

    def run(self) -> None:
        down = None
        client = httpx.Client(base_url=self._url, timeout=120, trust_env=False, headers={"Connection": "close"})
        while not self.ends.wait(0.05) or down is not None:
            began = time.monotonic()
            up = client.get("/health").status_code == 200
            self.took.append(time.monotonic() - began)
            if not up:
                down = began if down is None else down
            elif down is not None:
                self.away.append(time.monotonic() - down)
                down = None

    def __str__(self) -> str:
        median, worst = 1000 * statistics.median(self.took), 1000 * max(self.took)
        times = ", ".join(f"{seconds:.1f}" for seconds in sorted(self.away)) or "never"
        return f"/health took {median:.1f} ms (median), {worst:.0f} ms (worst); away (s): {times}"


@contextmanager
def watched(url: str) -> Iterator[Watch]:
    watch = Watch(url)
    watch.start()
    try:
        yield watch
    finally:
        watch.ends.set()
        watch.join()


class Trial:
    """A server, traffic on it, and what was against the promise."""

    def __init__(self, args: argparse.Namespace, flags: list[str]) -> None:
        self.args, self.flags = args, flags
        self.console = Console(width=160)
        self.wrong: list[str] = []

    @contextmanager
    def server(self, **environment: str) -> Iterator[Served]:
        own = ("--request-timeout", f"{DEADLINE:g}", "--max-engine-restarts", "1000", "--disable-uvicorn-access-log")
        developer = {"VLLM_SERVER_DEV_MODE": "1", "OMP_NUM_THREADS": f"{os.cpu_count()}", **environment}
        server = Served("demo", *own, *self.flags, environment=developer)
        try:
            yield server
        finally:
            server.stop()

    def traffic(self, server: Served, *extra: Callable[[], Ask]) -> None:
        """Ask for as long as was wanted, and say what came of it."""
        ledger = Ledger()
        clients = Clients(server.url, self.args.clients, ledger, seed=1, extra=extra)
        ends = time.monotonic() + self.args.seconds
        with watched(server.url) as watch:
            asyncio.run(clients.run(lambda: time.monotonic() < ends))
        self.console.print(outcome_table(ledger), watch)
        self.wrong += [*ledger.unexpected, *left_over(server)]

    def memory(self) -> None:
        file = io.BytesIO()
        Image.new("RGB", _LARGE, "red").save(file, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]
        body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 8}
        large = Ask("large picture", "/v1/chat/completions", body, frozenset({200, 400}))
        group = MemoryGroup()
        with self.server() as server:
            group.take(server.process.pid)
            server.wait_until_up()
            self.traffic(server)
            size = group.held + _HEADROOM
            self.console.print(f"memory ends at {size >> 20} MiB, {_HEADROOM >> 20} MiB beyond what is held")
            group.limit(size)
            before = {"the server": server.process.pid, "the engine": server.engine_pid}
            self.traffic(server, lambda: large)
            now = {"the server": server.process.pid, "the engine": server.engine_pid}
            same = [name for name in before if before[name] == now[name]]
            self.console.print(f"{group.killed} processes killed by the kernel; {' and '.join(same)} as before")
        group.remove()

    def clock(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            source, library, ahead = (Path(name) / part for part in ("clock.c", "clock.so", "ahead"))
            source.write_text(_CLOCK)
            subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
            ahead.write_text("0")
            with self.server(LD_PRELOAD=f"{library}", CLOCK_AHEAD=f"{ahead}") as server:
                server.wait_until_up()
                asked, created = {"prompt": "a", "max_tokens": 1}, []
                for seconds in (0, 86_400):
                    ahead.write_text(f"{seconds}")
                    created.append(server.client.post("/v1/completions", json=asked).json()["created"])
                assert created[1] - created[0] >= 86_400, "the library does not answer for the kernel"
                done = threading.Event()
                jumps = threading.Thread(target=self._jump, args=(ahead, done))
                jumps.start()
                self.traffic(server)
                done.set()
                jumps.join()

    def _jump(self, ahead: Path, done: threading.Event) -> None:
        other = ahead.with_suffix(".new")
        for seconds in (86_400, -86_400, 0, 3_600, -2_000_000_000, 0) * 1000:
            if done.wait(2):
                return
            other.write_text(f"{seconds}")
            other.replace(ahead)

    def queue(self) -> None:
        with self.server() as server:
            server.wait_until_up()
            held = _held(server)
            with watched(server.url) as watch:
                began = time.monotonic()
                # In a process of its own, as the watch would wait for its turns otherwise.
                with multiprocessing.get_context("spawn").Pool(1, allow_many_open_files) as client:
                    outcomes = client.apply(_asked_at_once, (server.url,))
                took = time.monotonic() - began
            counts = ", ".join(f"{outcome}: {count}" for outcome, count in outcomes.most_common())
            self.console.print(f"{AT_ONCE} at once in {took:.1f} s: {counts}", watch)
            self.console.print(f"memory of the server and the engine, MiB: {held} before, {_held(server)} behind")
            self.wrong += [f"{count} requests: {text}" for text, count in outcomes.items() if text not in _IN_ORDER]
            self.wrong += left_over(server)


_IN_ORDER = ("200", "429", "503", "504")


def _held(server: Served) -> list[int]:
    """Return the MiB of the server's process and of its engine's."""
    return [round(sum(resident(process).values())) for process in (server.process.pid, server.engine_pid)]


def _asked_at_once(url: str) -> Counter[str]:
    return asyncio.run(_all_at_once(url))


async def _all_at_once(url: str) -> Counter[str]:
    """Ask as often as there are connections, all at the same moment; count what became of each."""
    host, _, port = url.removeprefix("http://").partition(":")
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "ignore_eos": True})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    message = f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()

    async def ask() -> str:
        try:
            async with asyncio.timeout(20 * DEADLINE):
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(message)
                answer = await reader.read()
                writer.close()
        except (OSError, TimeoutError) as error:
            return type(error).__name__
        return answer[9:12].decode() or "closed without an answer"

    return Counter(await asyncio.gather(*(ask() for _ in range(AT_ONCE))))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    faults: dict[str, Any] = {"memory": Trial.memory, "clock": Trial.clock, "queue": Trial.queue}
    parser.add_argument("faults", nargs="*", choices=[*faults, []], help="those to try; all unless named")
    parser.add_argument("--seconds", type=float, default=60, help="of traffic")
    parser.add_argument("--clients", type=int, default=24)
    args, flags = parser.parse_known_args()
    trial = Trial(args, flags)
    # As a shell or a service has it; the server raises its own.
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    for name in args.faults or faults:
        trial.console.rule(name)
        with suppress(KeyboardInterrupt):
            faults[name](trial)
    for one in trial.wrong[:40]:
        trial.console.print("against the promise:", one, markup=False)
    return int(bool(trial.wrong))


if __name__ == "__main__":
    sys.exit(main())
