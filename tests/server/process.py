"""A real server in a real process, for tests that end it, kill its engine or need flags of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

_RUNNING = re.compile(r"Uvicorn running on (https?://\S+)")


class Served:
    """`tilewise serve` on a free port; what it logs is in `lines`."""

    def __init__(self, *flags: str, env: dict[str, str] | None = None) -> None:
        where = () if {"--port", "--uds"} & set(flags) else ("--port", "0")
        host = () if "--uds" in flags else ("--host", "127.0.0.1")
        command = [sys.executable, "-m", "tilewise", "serve", *host, *where, *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        self.lines: list[str] = []
        self.url = ""
        self._up = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as log:
            for line in log:
                self.lines.append(line.rstrip())
                if found := _RUNNING.search(line):
                    self.url = found[1]
                    self._up.set()
        self._up.set()

    def wait_until_up(self) -> None:
        self._up.wait(120)
        assert self.url, "\n".join(self.lines)

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    @property
    def engine_pid(self) -> int:
        """The newest engine process that is a child of the server's."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
                command = (stat.parent / "cmdline").read_bytes()
            except OSError:
                continue
            if int(fields[1]) == self.process.pid and b"spawn_main" in command:
                found.append(int(stat.parent.name))
        return max(found)

    def metric(self, name: str) -> float:
        """The sum over all labels."""
        text = httpx.get(f"{self.url}/metrics").text
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if re.match(rf"{name}[{{ ]", line))

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()
            self._reader.join(30)


@contextmanager
def served(*flags: str, env: dict[str, str] | None = None) -> Iterator[Served]:
    server = Served(*flags, env=env)
    try:
        server.wait_until_up()
        yield server
    finally:
        server.stop()
