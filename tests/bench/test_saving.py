"""Results on disk: names, fields, lines that are appended, and a disk that is full."""

from __future__ import annotations

import json
import math
from datetime import datetime
from pathlib import Path

import pytest

from tests.bench.test_figures import ALL, figures
from tilewise.bench.figures import measure
from tilewise.bench.load import Arrivals, LoadLevel, Ramp
from tilewise.bench.results import NotSaved, RunFacts, Saving, details, result_json, write_json
from tilewise.errors import InvalidConfig

NOW = datetime(2026, 1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("saving", "load", "name"),
    [
        (Saving(), LoadLevel(), "openai-infqps-m-20260102-030405.json"),
        (Saving(label="x"), LoadLevel(Arrivals(1.0), 8), "x-1.0qps-concurrency8-m-20260102-030405.json"),
        (
            Saving(),
            LoadLevel(Arrivals(ramp=Ramp("linear", 1, 4))),
            "openai-ramp-up-linear-1qps-4qps-m-20260102-030405.json",
        ),
        (Saving(name="mine.json"), LoadLevel(), "mine.json"),
    ],
)
def test_names_are_vllms(saving, load, name):
    assert saving.path("openai", load, "org/m", NOW) == Path(name)


def test_fields_are_vllms():
    about = RunFacts("openai", "org/m", "folder", 3, LoadLevel(Arrivals(2.0), 4))
    found = result_json(about, Saving(metadata={"tp": "1"}), figures(), NOW)
    head = {
        "date": "20260102-030405",
        "endpoint_type": "openai",
        "backend": "openai",
        "label": None,
        "model_id": "org/m",
        "tokenizer_id": "folder",
        "num_prompts": 3,
        "tp": "1",
        "request_rate": 2.0,
        "burstiness": 1.0,
        "max_concurrency": 4,
    }
    assert {name: found[name] for name in head} == head
    for metric in ("ttft", "tpot", "itl", "e2el", "first_chunk"):
        assert {f"{what}_{metric}_ms" for what in ("mean", "median", "std", "p50", "p99")} <= found.keys()
    everything = result_json(RunFacts("openai", "m", None, 3, LoadLevel(Arrivals(math.inf))), Saving(), figures(), NOW)
    assert json.loads(json.dumps(everything))["request_rate"] == "inf"


def test_details_are_in_the_order_of_the_requests():
    found = details(ALL, measure(ALL, [1, 2, 3], None))
    assert (found["input_lens"], found["output_lens"]) == ([10, 20, 0], [5, 1, 0])
    assert found["ttfts"] == [0.2, 0.4, 0.0]
    assert found["itls"][0] == pytest.approx([0.1, 0.3])
    assert found["errors"] == ["", "", "connection lost: reset"]
    assert found["generated_texts"] == ["abc", "d", ""]


def test_appending_adds_a_line_and_saving_begins_anew(tmp_path):
    path = tmp_path / "new" / "all.json"
    for number in range(2):
        Saving(append=True).write({"run": number}, path)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"run": 0}, {"run": 1}]
    Saving().write({"run": 2}, path)
    assert json.loads(path.read_text()) == {"run": 2}


def test_a_full_disk_is_named():
    with pytest.raises(NotSaved, match=r"could not be saved in /dev/full: No space left on device\. Name another"):
        write_json(Path("/dev/full"), {"run": 0})


def test_metadata_that_is_no_pair_is_refused():
    assert Saving.read_metadata(["a=b=c", " d = e"]) == {"a": "b=c", "d": "e"}
    with pytest.raises(InvalidConfig, match="--metadata takes KEY=VALUE, got 'a'"):
        Saving.read_metadata(["a"])
