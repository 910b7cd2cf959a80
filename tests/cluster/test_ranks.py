"""Ranks on the two nodes of a Ray cluster: answers of one rank, and what becomes of a server when a node is lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests.cluster.nodes import Cluster, Node, cluster, mentioning, titled, wait_for
from tests.parallel.test_engine import answers
from tests.served import Served, served
from tests.tiny import SPECS, write_original
from tilewise import LLM, SamplingParams
from tilewise.errors import InvalidConfig, RankDied
from tilewise.host import Memory

pytestmark = pytest.mark.ray
RAY = {"tensor_parallel_size": 2, "distributed_executor_backend": "ray", "dtype": "float32", "max_model_len": 512}
FLAGS = ("-tp", "2", "--distributed-executor-backend", "ray", "--dtype", "float32", "--max-model-len", "2048")


def rank_on(node: Node) -> int:
    """The process of the one rank on a node."""
    (found,) = titled(node.processes, "ray::RankActor")
    return found


@contextmanager
def nothing_left(of: Cluster) -> Iterator[None]:
    """Behind an engine, all room of the cluster is free again."""
    yield
    assert of.state() == {"nodes": 2, "groups": [], "cpus": 2.0}
    assert titled(of.other.processes + of.head.processes, "ray::RankActor") == []


def test_ranks_on_two_nodes_give_the_answers_of_one(two: Cluster) -> None:
    alone = answers("demo", 1)
    with nothing_left(two):
        found = answers("demo", 2, distributed_executor_backend="ray", nnodes=2)
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in alone]
    for (_, ours), (_, theirs) in zip(found, alone, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_a_rank_that_is_killed_is_named_with_its_node(two: Cluster) -> None:
    with nothing_left(two), LLM("demo", **RAY) as llm:
        os.kill(rank_on(two.other), signal.SIGKILL)
        with pytest.raises(RankDied, match=r"^Rank 1 of 2, on node [0-9a-f]{8} \(\S+\), "):
            llm.generate("a", SamplingParams(max_tokens=4), use_tqdm=False)


def test_room_that_does_not_come_is_said_with_what_there_is(two: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWISE_RAY_WAIT", "2")
    said = r"4 ranks need 4 CPU, one of them on this node; the cluster has 2 of 2 CPU free, on 2 nodes"
    with nothing_left(two), pytest.raises(InvalidConfig, match=said):
        LLM("demo", **{**RAY, "tensor_parallel_size": 4})


def stream(server: Served, tokens: int) -> Iterator[str]:
    body = {"prompt": "1 2 3 1 2 3", "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    with server.client.stream("POST", "/v1/completions", json=body) as answer:
        yield from filter(None, answer.iter_lines())


def asked(server: Served) -> httpx.Response:
    body = {"prompt": "1 2 3 1 2 3", "max_tokens": 8, "temperature": 0}
    return server.client.post("/v1/completions", json=body)


def test_a_server_is_back_when_a_lost_node_is(two: Cluster) -> None:
    with nothing_left(two), served(*FLAGS) as server:
        first = asked(server).json()["choices"]
        lines = stream(server, 2000)
        for _ in range(20):
            next(lines)
        assert rank_on(two.other)
        two.other.kill()
        lost = time.monotonic()
        *_, error, end = lines
        told = time.monotonic()
        assert '"code":503' in error
        assert "send the request again" in error
        assert end == "data: [DONE]"
        assert server.logs("Rank 1 of 2, on node ")
        assert asked(server).status_code == 503
        assert server.logs("Waiting, for ", 60)
        two.other.start()
        started = time.monotonic()
        wait_for(lambda: asked(server).status_code == 200, 300)
        back = time.monotonic()
        print(
            f"\nthe client was told after {told - lost:.1f} s; the node was started again after {started - lost:.1f} s "
            f"(a `ray start` takes some of them); answers were there {back - started:.1f} s later"
        )
        assert asked(server).json()["choices"] == first
        assert rank_on(two.other)
        wait_for(lambda: two.state()["nodes"] == 2)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts are root's")
def test_a_node_without_the_model_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_original(tmp_path / "models" / "one", SPECS["qwen2-300m"])
    with cluster(hidden=tmp_path / "models") as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        said = rf"^node [0-9a-f]{{8}} \(\S+\) has no folder {model}: copy the model there"
        with nothing_left(made), pytest.raises(InvalidConfig, match=said):
            LLM(str(model), **RAY)


def test_a_machine_without_a_cluster_gets_one_that_ends_with_the_engine() -> None:
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # its sockets' paths have to be short
    code = (
        "from tilewise import LLM, SamplingParams\n"
        "from tilewise.console import set_up_logs\n"
        "set_up_logs('Program')\n"
        f"with LLM('demo', **{RAY}) as llm:\n"
        "    print(llm.generate('1 2 3', SamplingParams(max_tokens=4), use_tqdm=False)[0].outputs[0].token_ids)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "RAY_ADDRESS": "local", "RAY_TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    assert "a cluster of this machine alone was started" in told.stderr
    assert "(Rank1 pid=" in told.stderr
    wait_for(lambda: not mentioning(str(folder)))
    shutil.rmtree(folder)


def test_nodes_that_differ_are_named_with_what_differs(tmp_path: Path) -> None:
    from tilewise.runner.ray_nodes import NodeFacts, check_folders, check_versions

    ours = NodeFacts({"tilewise": "1.0", "torch": "2.13.0"}, Memory(8, 4), 1)
    check_versions(ours, {"a": replace(ours, pid=2)})
    with pytest.raises(InvalidConfig, match=r"^b has torch 2\.11\.0, and this node 2\.13\.0: install the same"):
        check_versions(ours, {"a": ours, "b": replace(ours, versions={"tilewise": "1.0", "torch": "2.11.0"})})
    files = {"config.json": 10, "model.safetensors": 1000}
    check_folders({tmp_path: files}, {"a": {tmp_path: {**files, "more.safetensors": 1}}})
    for found, size in (({"config.json": 10, "model.safetensors": 999}, "999"), ({"config.json": 10}, "no")):
        with pytest.raises(
            InvalidConfig, match=rf"another one on b: model\.safetensors has {size} bytes there, and 1000"
        ):
            check_folders({tmp_path: files}, {"a": {tmp_path: files}, "b": {tmp_path: found}})


def test_an_address_where_nobody_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(InvalidConfig, match=r"RAY_ADDRESS=127\.0\.0\.1:1: nobody answers there"):
        LLM("demo", **RAY)
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:1")
    with pytest.raises(InvalidConfig, match="is for Ray's client"):
        LLM("demo", **RAY)
