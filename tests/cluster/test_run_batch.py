"""A file of requests over the nodes of a Ray cluster: each line is answered once, whatever is killed meanwhile."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.cluster.nodes import Cluster, Node, titled, wait_for
from tests.jobs.lines import write_lines
from tests.jobs.runs import MEDIA, Batch, lines_of, once_each, requests
from tilewise.errors import InvalidConfig
from tilewise.jobs.job import Job

FLAGS = ("--ray", "auto", "--max-in-flight", "12", *MEDIA)


def engines_on(node: Node) -> list[int]:
    return titled(node.processes, "ray::EngineActor")


@pytest.mark.ray
def test_a_node_is_lost_and_the_run_itself_is_killed(two: Cluster, tmp_path: Path) -> None:
    source, output = write_lines(tmp_path / "in.jsonl", requests(800)), tmp_path / "out.jsonl"
    batch = Batch(source, output, *FLAGS)
    wait_for(lambda: lines_of(output) >= 20 and engines_on(two.head) and engines_on(two.other), 300)
    two.other.kill()
    at = lines_of(output)
    assert at < 800
    batch.until(at + 60)
    assert batch.process.poll() is None, batch.end()
    batch.process.kill()
    before = lines_of(output)
    batch.end()
    wait_for(lambda: not engines_on(two.head))
    two.other.start()
    again = Batch(source, output, *FLAGS)
    again.until(before + 40)
    for node in (two.head, two.other):
        if found := engines_on(node):
            os.kill(found[0], signal.SIGKILL)
            break
    assert again.end() == 0, again.said
    once_each(output, 800)
    assert "800 lines: 800 succeeded, 0 failed" in again.said
    print(f"\n{at} lines when the node was lost, {before} when the run was killed, 800 of 800 answered once")
    wait_for(lambda: two.state() == {"nodes": 2, "groups": [], "cpus": 2.0})


@pytest.mark.ray
def test_a_model_that_no_engine_can_load(two: Cluster, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", requests(1))
    batch = Batch(source, tmp_path / "out.jsonl", "/nowhere/model", *FLAGS)
    assert batch.end() == 1
    assert batch.said.splitlines()[-1].startswith("tilewise: ")
    assert "/nowhere/model" in batch.said.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"replicas": 2}, "replicas=2 has no effect without ray"),
        ({"ray": "auto", "replicas": 0}, "replicas must be 1 or above"),
        ({"ray": "auto", "replica_cpus": 1.5}, "whole CPUs"),
        ({"ray": "auto", "enable_metrics": True}, "metrics of their own"),
    ],
)
def test_what_a_cluster_cannot_do_is_refused(
    options: dict[str, object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tilewise.jobs.job.require_extra", lambda *_: None)  # Ray need not be there
    source = write_lines(tmp_path / "in.jsonl", requests(1))
    with pytest.raises(InvalidConfig, match=said):
        Job(input_file=source, output_file=tmp_path / "out.jsonl", **options)
