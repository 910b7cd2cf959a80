"""Ray clusters of two nodes on this machine, each with one CPU, whose nodes can be killed without a word."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.served import ROOT

_RAY = str(Path(sys.executable).parent / "ray")
_TOKEN = secrets.token_hex(32)
"""Nobody else of this machine's network has business here. Ray reads it once in a process, for all clusters after."""
_SMALL = ("--num-cpus=1", "--object-store-memory=100000000", "--block", "--disable-usage-stats")


class Node:
    """A node, with all processes that Ray starts for it."""

    def __init__(self, environment: Mapping[str, str], *flags: str, before: Sequence[str] = ()) -> None:
        """`before`: words that stand before the command, which they run."""
        self._flags, self._environment, self._before = flags, environment, before
        self.start()

    def start(self) -> None:
        """Returns when it is there. Ray gives up where its own processes are slow to start, and is asked again."""
        command = [*self._before, _RAY, "start", *self._flags, *_SMALL]
        for _ in range(4):
            with tempfile.TemporaryFile("w+") as log:
                self._process = subprocess.Popen(command, env=dict(self._environment), stdout=log, stderr=log)
                until = time.monotonic() + 90
                while time.monotonic() < until and self._process.poll() is None and not self._lacks_its_raylet():
                    log.seek(0)
                    if "Ray runtime started" in log.read():
                        return
                    time.sleep(0.2)
            self.kill()
        raise TimeoutError("Ray cannot be started here.")

    def _lacks_its_raylet(self) -> bool:
        return any(
            Path(f"/proc/{pid}/stat").read_text().partition(")")[0].endswith("(raylet") and not lives(pid)
            for pid in below(self._process.pid)
        )

    @property
    def processes(self) -> list[int]:
        """All of the node, workers included."""
        return [self._process.pid, *below(self._process.pid)]

    def has(self, pid: int) -> bool:
        return pid in self.processes

    def kill(self) -> None:
        """Everything at once, without a word to anybody."""
        found = self.processes
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        wait_for(lambda: not any(lives(pid) for pid in found))


class Cluster:
    """A head and another node."""

    def __init__(self, hidden: Path | None = None) -> None:
        """A folder that is `hidden` from the other node is there an empty one."""
        self._folder = Path(tempfile.mkdtemp(prefix="ray-"))  # sockets lie below it, whose paths have to be short
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self.environment = {
            "RAY_ADDRESS": self.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": _TOKEN,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_raylet_start_wait_time_s": "300",  # of a machine that has other things to do
            "RAY_worker_niceness": "0",  # Ray's own workers get what others leave, which may be little
            "OMP_NUM_THREADS": "1",
        }
        started = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **self.environment}
        started.pop("RAY_ADDRESS")
        head = ("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self._folder}")
        self.head = Node(started, *head)
        self.other = Node(started, f"--address={self.address}", before=_without(hidden) if hidden else ())
        wait_for(lambda: self.state()["nodes"] == 2, 120)

    def state(self) -> dict[str, Any]:
        """What Ray says is there: living nodes, placement groups and actors that are not gone."""
        code = (
            "import json, ray; from ray.util.placement_group import placement_group_table as table;"
            "ray.init(address='auto', log_to_driver=False, configure_logging=False);"
            "groups = [one for one in table().values() if one['state'] != 'REMOVED'];"
            "nodes = sum(node['Alive'] for node in ray.nodes());"
            "print(json.dumps({'nodes': nodes, 'groups': groups, 'cpus': ray.available_resources().get('CPU', 0)}))"
        )
        told = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **self.environment}, capture_output=True, text=True
        )
        last = told.stdout.strip().splitlines()[-1:] or ["{}"]
        return {"nodes": 0, "groups": None, **json.loads(last[0] if last[0].startswith("{") else "{}")}

    def close(self) -> None:
        self.other.kill()
        self.head.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


def _without(folder: Path) -> list[str]:
    """A command's words that run another one where a folder is empty: with mounts of its own."""
    return ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {folder} && exec "$@"', "sh"]


@contextmanager
def cluster(hidden: Path | None = None) -> Iterator[Cluster]:
    """Nothing of it is left behind: no process, no shared memory."""
    shared = set(Path("/dev/shm").iterdir())
    made = Cluster(hidden)
    try:
        yield made
    finally:
        made.close()
    assert set(Path("/dev/shm").iterdir()) <= shared


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def below(pid: int) -> list[int]:
    """Processes that a process has started, and those that they have."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            above = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(above, []).append(int(path.name))
    found, left = [], [pid]
    while left:
        more = children.get(left.pop(), [])
        found += more
        left += more
    return found


def titled(pids: list[int], title: str) -> list[int]:
    """Those whose command line begins so, as Ray names its workers."""
    found = []
    for pid in pids:
        with suppress(OSError):
            if (Path(f"/proc/{pid}/cmdline").read_bytes()).decode(errors="replace").startswith(title):
                found.append(pid)
    return found


def mentioning(text: str) -> list[int]:
    """Living processes that have it in their command line."""
    found = []
    for path in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            if text.encode() in (path / "cmdline").read_bytes() and int(path.name) != os.getpid():
                found.append(int(path.name))
    return found


def wait_for(true: Any, seconds: float = 180) -> None:
    """Raises TimeoutError if it does not come true."""
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            raise TimeoutError(f"{true} did not come true in {seconds:g} seconds.")
        time.sleep(0.1)
