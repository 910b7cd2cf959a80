"""Results: the printed table, to the character, since scripts cut it at column 40; names and fields of files."""

from __future__ import annotations

import json
import math
from datetime import datetime
from pathlib import Path

import pytest

from tests.bench.test_figures import AFTER, ALL, BEFORE, figures
from tilewise.bench.figures import Goals, ServerMetrics, with_counts
from tilewise.bench.load import Arrivals, LoadLevel, Ramp
from tilewise.bench.options import NotSaved, SavingOptions, read_pairs, write_result
from tilewise.bench.results import (
    RunFacts,
    details,
    failure_lines,
    read_metrics,
    result_json,
    table,
)
from tilewise.errors import InvalidConfig

NOW = datetime(2026, 1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("saving", "load", "name"),
    [
        (SavingOptions(), LoadLevel(), "openai-infqps-m-20260102-030405.json"),
        (SavingOptions(label="x"), LoadLevel(Arrivals(1.0), 8), "x-1.0qps-concurrency8-m-20260102-030405.json"),
        (
            SavingOptions(),
            LoadLevel(Arrivals(ramp=Ramp("linear", 1, 4))),
            "openai-ramp-up-linear-1qps-4qps-m-20260102-030405.json",
        ),
        (SavingOptions(result_filename="mine.json"), LoadLevel(), "mine.json"),
    ],
)
def test_names_are_vllms(saving, load, name):
    assert saving.path(facts(load), NOW) == Path(name)


def facts(load: LoadLevel) -> RunFacts:
    return RunFacts("openai", "org/m", None, 3, load)


def test_a_name_that_several_runs_share_gets_the_load_of_each():
    loads = [LoadLevel(Arrivals(1.0)), LoadLevel(Arrivals(2.0), 8), LoadLevel()]
    saving = SavingOptions(result_dir=Path("out"), result_filename="mine.json")
    names = [saving.path(facts(load), NOW, runs=3).name for load in loads]
    assert names == ["mine-1.0qps.json", "mine-2.0qps-concurrency8.json", "mine-infqps.json"]
    assert saving.path(facts(loads[0]), NOW, runs=2, repeats=1) == Path("out/mine-1.0qps-2.json")
    assert SavingOptions(result_filename="mine.json", append_result=True).path(facts(loads[0]), NOW, runs=3) == Path(
        "mine.json"
    )


def test_fields_are_vllms():
    about = RunFacts("openai", "org/m", "folder", 3, LoadLevel(Arrivals(2.0), 4))
    found = result_json(about, SavingOptions(metadata=("tp=1",)), figures(), NOW)
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
    everything = result_json(
        RunFacts("openai", "m", None, 3, LoadLevel(Arrivals(math.inf))), SavingOptions(), figures(), NOW
    )
    assert json.loads(json.dumps(everything))["request_rate"] == "inf"


def test_details_are_in_the_order_of_the_requests():
    found = details(with_counts(ALL, [1, 2, 3], None))
    assert (found["input_lens"], found["output_lens"]) == ([10, 20, 0], [5, 1, 0])
    assert found["ttfts"] == [0.2, 0.4, 0.0]
    assert found["itls"][0] == pytest.approx([0.1, 0.3])
    assert found["errors"] == ["", "", "connection lost: reset"]
    assert found["generated_texts"] == ["abc", "d", ""]


def test_appending_adds_a_line_and_saving_begins_anew(tmp_path):
    path = tmp_path / "new" / "all.json"
    for number in range(2):
        write_result({"run": number}, path, append=True)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"run": 0}, {"run": 1}]
    write_result({"run": 2}, path)
    assert json.loads(path.read_text()) == {"run": 2}


def test_a_full_disk_is_named():
    with pytest.raises(NotSaved, match=r"could not be saved in /dev/full: No space left on device\. Name another"):
        write_result({"run": 0}, Path("/dev/full"))


def test_metadata_that_is_no_pair_is_refused():
    assert read_pairs(["a=b=c", " d = e"], "--metadata") == {"a": "b=c", "d": "e"}
    with pytest.raises(InvalidConfig, match="--metadata takes KEY=VALUE, got 'a'"):
        read_pairs(["a"], "--metadata")


EXPECTED = """\
============ Serving Benchmark Result ============
Successful requests:                     2
Failed requests:                         1
Maximum request concurrency:             4
Request rate configured (RPS):           2.00
Benchmark duration (s):                  2.00
Total input tokens:                      30
Total generated tokens:                  6
Request throughput (req/s):              1.00
Request goodput (req/s):                 0.50
Output token throughput (tok/s):         3.00
Peak output token throughput (tok/s):    6.00
Peak concurrent requests:                2.00
Total token throughput (tok/s):          18.00
---------------------Pictures---------------------
Total input vision tokens:               48
Total tiles:                             3
Tiles encoded:                           3
Mean preprocessing time (ms):            250.00
---------------Time to First Token----------------
Mean TTFT (ms):                          300.00
Median TTFT (ms):                        300.00
P50 TTFT (ms):                           300.00
P99 TTFT (ms):                           398.00
Mean time to first chunk (ms):           250.00
----------------End-to-end Latency----------------
Mean E2EL (ms):                          500.00
Median E2EL (ms):                        500.00
P50 E2EL (ms):                           500.00
P99 E2EL (ms):                           598.00
---------------Speculative Decoding---------------
Acceptance rate (%):                     50.00
Acceptance length:                       2.50
Drafts:                                  4
Draft tokens:                            12
Accepted tokens:                         6
-----------------Failed Requests------------------
connection lost:                         1
=================================================="""


def test_every_section_in_its_place():
    found = figures(goals=Goals.read(["ttft:250"]), server=ServerMetrics.between(BEFORE, AFTER))
    lines = table(found, LoadLevel(Arrivals(rate=2.0), 4), ("ttft", "e2el")).splitlines()
    assert [line.rstrip() for line in lines] == EXPECTED.splitlines()
    assert {len(line) for line in lines} <= {50, 51}, "values are padded to ten columns"


def test_what_was_not_asked_for_is_not_shown():
    text = table(figures(), LoadLevel(), ("ttft", "tpot", "itl"))
    for absent in ("RPS", "Maximum request", "goodput", "E2EL", "Speculative", "Queue"):
        assert absent not in text


def test_failures_are_counted_by_what_they_were():
    texts = ["lost: a", *["HTTP 429: busy"] * 3, *(f"odd: {number}" for number in range(12))]
    lines = failure_lines(texts)
    assert lines[:2] == ["3 x HTTP 429: busy", "1 x lost: a"]
    assert lines[-1] == "and 4 others"


def test_an_unknown_metric_is_refused():
    with pytest.raises(InvalidConfig, match=r"got 'ttf'\. Did you mean ttft\?"):
        read_metrics("ttf,itl")
