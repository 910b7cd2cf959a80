"""Servers under Ray Serve on two nodes: both answer, one that is killed is replaced, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import httpx
import pytest

from tests.cluster.nodes import Cluster, below, titled, wait_for
from tests.served import ROOT
from tilewise.deploy import RayDeployment, application
from tilewise.errors import InvalidConfig

BODY = {"prompt": "1 2 3 1 2 3", "temperature": 0, "ignore_eos": True}
_REPLICA = "ray::ServeReplica"
FLAGS = ("--host", "127.0.0.1", "--dtype", "float32", "--max-model-len", "2048")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Command:
    """A command that runs until it is told to stop; what it says is in `lines`."""

    def __init__(self, words: Sequence[str]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        self.process = subprocess.Popen(
            [*words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as log:
            self.lines += log

    def wait_for(self, text: str) -> None:
        wait_for(lambda: text in "".join(self.lines) or self.process.poll() is not None, 300)
        assert text in "".join(self.lines), "".join(self.lines)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(90)
        finally:
            self.process.kill()
            self._reader.join(10)


@contextmanager
def running(*words: str) -> Iterator[Command]:
    command = Command(words)
    try:
        yield command
    finally:
        command.process.kill()
        command.process.wait()


def tilewise(*words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "tilewise", *words)


def replicas(of: Cluster) -> list[int]:
    """Replicas that have an engine."""
    found = titled([*of.head.processes, *of.other.processes], _REPLICA)
    return [pid for pid in found if engine_of(pid)]


def engine_of(replica: int) -> list[int]:
    return [pid for pid in below(replica) if b"tilewise.remote.begin" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def in_service(name: str) -> int:
    """Replicas that Serve sends requests to."""
    import ray
    from ray import serve

    if not ray.is_initialized():
        ray.init(address="auto", log_to_driver=False, configure_logging=False)
    states = serve.status().applications[name].deployments["tilewise"].replica_states
    return int(states.get("RUNNING", 0))


def streamed(client: httpx.Client, tokens: int) -> str:
    """How a stream ended: done, an error that it told, its connection, or a status in its place."""
    try:
        with client.stream("POST", "/v1/completions", json={**BODY, "max_tokens": tokens, "stream": True}) as answer:
            lines = list(filter(None, answer.iter_lines()))
    except httpx.TransportError:
        return "cut off"
    if answer.status_code != 200:
        return f"{answer.status_code}"
    told = [line for line in lines if '"error"' in line]
    if told:
        return "told" if '"code":503' in told[0] and "send the request again" in told[0] else told[0]
    return "done" if lines[-1] == "data: [DONE]" else "cut off"


def asked(client: httpx.Client) -> httpx.Response:
    return client.post("/v1/completions", json={**BODY, "max_tokens": 6})


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")  # Serve's own, as it is imported here
def test_two_replicas_on_two_nodes_answer_and_are_replaced(two: Cluster) -> None:
    port = free_port()
    words = ("deploy", "demo", "--name", "pictures", "--replicas", "2", "--port", f"{port}", *FLAGS)
    with running(*tilewise(*words)) as command, ThreadPoolExecutor(8) as together:
        command.wait_for("pictures is deployed at")
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False)
        wait_for(lambda: len(replicas(two)) == 2, 300)
        here, there = sorted(replicas(two), key=two.other.has)
        assert two.head.has(here)
        assert two.other.has(there)
        first = asked(client).json()["choices"]
        assert client.get("/v1/models").json()["data"][0]["id"] == "demo"
        assert client.get("/health").status_code == 200

        # A replica is killed while both of them answer.
        streams = [together.submit(streamed, client, 400) for _ in range(8)]
        time.sleep(1.5)
        os.kill(there, signal.SIGKILL)
        killed = time.monotonic()
        meanwhile = [asked(client).status_code for _ in range(10)]
        wait_for(lambda: len(set(replicas(two)) - {here, there}) == 1, 300)
        wait_for(lambda: in_service("pictures") == 2, 300)
        began = time.monotonic()
        ends = [stream.result() for stream in streams]
        assert set(ends) == {"done", "cut off"}, ends
        assert set(meanwhile) <= {200, 500, 503}
        wait_for(lambda: [streamed(client, 5) for _ in range(8)] == ["done"] * 8, 300)
        print(f"\na killed replica: {ends.count('cut off')} of 8 streams cut off; of 10 requests right behind, "
              f"{meanwhile.count(200)} answered; the next one was in service after {began - killed:.1f} s")  # fmt: skip

        # An engine is killed, and its replica goes with it.
        (new,) = set(replicas(two)) - {here}
        wait_for(lambda: client.get("/health").status_code == 200)
        streams = [together.submit(streamed, client, 400) for _ in range(8)]
        time.sleep(1.5)
        os.kill(engine_of(here)[0], signal.SIGKILL)
        killed = time.monotonic()
        wait_for(lambda: len(set(replicas(two)) - {here, new}) == 1, 300)
        wait_for(lambda: in_service("pictures") == 2, 300)
        print(f"a killed engine: the next replica was in service after {time.monotonic() - killed:.1f} s")
        ends = [stream.result() for stream in streams]
        assert set(ends) <= {"done", "told"}, ends
        assert "told" in ends
        assert asked(client).json()["choices"] == first
        client.close()
        import_module("ray").shutdown()
        assert command.stop() == 0
    wait_for(lambda: not titled([*two.head.processes, *two.other.processes], "ray::Serve"))
    assert two.state() == {"nodes": 2, "groups": [], "cpus": 2.0}


@pytest.mark.ray
def test_a_file_of_serve_deploys_the_same_and_a_name_stops_it(two: Cluster, tmp_path: Path) -> None:
    port = free_port()
    example = (ROOT / "examples" / "ray-serve.yaml").read_text()
    file = tmp_path / "serve.yaml"
    file.write_text(example.replace("8000", f"{port}"))
    with running(str(Path(sys.executable).parent / "serve"), "run", str(file)):
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False)

        def answers() -> bool:
            try:
                return asked(client).status_code == 200
            except httpx.TransportError:
                return False

        wait_for(answers, 300)
        other = subprocess.run(tilewise("deploy", "--stop", "other"), capture_output=True, text=True, check=False)
        assert other.returncode == 1
        assert "No deployment is called 'other': there are demo." in other.stderr
        assert subprocess.run(tilewise("deploy", "--stop", "demo"), check=False).returncode == 0
        client.close()
    wait_for(lambda: not titled([*two.head.processes, *two.other.processes], "ray::Serve"))


@pytest.mark.ray
def test_a_model_that_is_not_there_is_said_in_one_line(two: Cluster) -> None:
    words = ("deploy", "/nowhere/model", "--port", f"{free_port()}", "--host", "127.0.0.1")
    told = subprocess.run(tilewise(*words), capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert told.stderr.splitlines()[-1].startswith("tilewise: ")
    assert "/nowhere/model" in told.stderr.splitlines()[-1]
    wait_for(lambda: not titled([*two.head.processes, *two.other.processes], "ray::Serve"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"autoscale": "4:1"}, "autoscale must be MIN:MAX"),
        ({"autoscale": "62"}, "in quotes"),
        ({"autoscale": "two"}, "autoscale must be MIN:MAX"),
        ({"autoscale": "1:2", "replicas": 2}, "give one of them"),
        ({"replicas": 0}, "replicas must be 1 or above"),
        ({"replica_cpus": -1.0}, "replica_cpus must be 0 or above"),
        ({"replica_cpus": 1.5}, "whole CPUs"),
        ({"uds": "/tmp/socket"}, "Ray Serve listens"),
    ],
)
def test_what_cannot_be_deployed_is_refused_before_a_cluster_is_asked(values: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidConfig, match=said):
        RayDeployment.of({"model": "demo", **values}, {})


def test_names_in_a_file_of_serve_are_those_of_flags() -> None:
    with pytest.raises(InvalidConfig, match=r"args: there is no flag 'replicaz'\. Did you mean replicas\?"):
        application({"model": "demo", "replicaz": 2})
