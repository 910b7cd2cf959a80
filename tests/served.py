"""A real `tilewise serve` on the demo model, in a process of its own, and questions about the demo's pictures."""

from __future__ import annotations

import base64
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "src" / "tilewise" / "demo" / "pictures"
PATIENCE = 300
"""Seconds after which something hangs; on a busy machine a server takes a minute to start."""
_RUNNING = re.compile(r"Uvicorn running on (https?://\S+)")


def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait until something has happened. What takes longer than `seconds` hangs, and fails."""
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen")


class Served:
    """On a free port; what it logs is in `lines`."""

    def __init__(self, *flags: str, verb: str = "serve", environment: Mapping[str, str] | None = None) -> None:
        where = () if {"--port", "--uds"} & set(flags) else ("--port", "0")
        host = () if "--uds" in flags else ("--host", "127.0.0.1")
        command = [sys.executable, "-m", "tilewise", verb, *host, *where, *flags]
        variables = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", **(environment or {})}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables, cwd=ROOT
        )
        self.lines: list[str] = []
        self.url = ""
        # A connection that has idled nearly as long as the server keeps one could be closed just when it is used again.
        limits = httpx.Limits(keepalive_expiry=2)
        self.client = httpx.Client(timeout=PATIENCE, trust_env=False, limits=limits)
        """Keeps its connections."""
        self._up = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as log:
            for line in log:
                self.lines.append(line.rstrip())
                if found := _RUNNING.search(line):
                    self.url = self.client.base_url = found[1]
                    self._up.set()
        self._up.set()

    def wait_until_up(self) -> None:
        self._up.wait(PATIENCE)
        assert self.url, "\n".join(self.lines)

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def logs(self, text: str, seconds: float = PATIENCE) -> bool:
        """Whether the log has the text, or comes to have it: an answer may be there before its line."""
        deadline = time.monotonic() + seconds
        while text not in self.log and time.monotonic() < deadline:
            time.sleep(0.02)
        return text in self.log

    @property
    def engine_pid(self) -> int:
        """The newest engine process."""
        return max(self.engine_pids.values())

    @property
    def engine_pids(self) -> dict[int, int]:
        """Of the engine processes that are children of the server's, by their numbers."""
        found = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
                command = (stat.parent / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if int(fields[1]) == self.process.pid and b"tilewise.remote.begin" in command:
                found[int(command[-3])] = int(stat.parent.name)
        return found

    def metric(self, name: str, label: str = "") -> float:
        """The sum over all labels, or over those with `label` among them."""
        lines = self.client.get("/metrics").text.splitlines()
        named = [line for line in lines if line.startswith((f"{name} ", f"{name}{{")) and label in line]
        return sum(float(line.rpartition(" ")[2]) for line in named)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit status."""
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self._reader.join(30)


@contextmanager
def served(*flags: str, verb: str = "serve", environment: Mapping[str, str] | None = None) -> Iterator[Served]:
    server = Served(*flags, verb=verb, environment=environment)
    try:
        server.wait_until_up()
        yield server
    finally:
        server.stop()


def question(text: str, picture: str) -> list[dict[str, Any]]:
    """Messages about one of the demo's pictures, sent as a data URL."""
    data = base64.b64encode((PICTURES / picture).read_bytes()).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    return [{"role": "user", "content": [part, {"type": "text", "text": text}]}]
