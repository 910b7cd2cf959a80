"""The printed table, to the character: scripts cut it at column 40."""

from __future__ import annotations

import pytest

from tests.bench.test_figures import AFTER, BEFORE, figures
from tilewise.bench.figures import Goals
from tilewise.bench.results import TableOptions, failure_lines, table
from tilewise.bench.server_report import ServerReport
from tilewise.errors import InvalidConfig

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
    found = figures(goals=Goals.read(["ttft:250"]), server=ServerReport.between(BEFORE, AFTER))
    lines = table(found, TableOptions(("ttft", "e2el"), rate=2.0, concurrency=4)).splitlines()
    assert [line.rstrip() for line in lines] == EXPECTED.splitlines()
    assert {len(line) for line in lines} <= {50, 51}, "values are padded to ten columns"


def test_what_was_not_asked_for_is_not_shown():
    text = table(figures(), TableOptions())
    for absent in ("RPS", "Maximum request", "goodput", "E2EL", "Speculative", "Queue"):
        assert absent not in text


def test_failures_are_counted_by_what_they_were():
    texts = ["lost: a", *["HTTP 429: busy"] * 3, *(f"odd: {number}" for number in range(12))]
    lines = failure_lines(texts)
    assert lines[:2] == ["3 x HTTP 429: busy", "1 x lost: a"]
    assert lines[-1] == "and 4 others"


def test_an_unknown_metric_is_refused():
    with pytest.raises(InvalidConfig, match=r"got 'ttf'\. Did you mean ttft\?"):
        TableOptions.read_metrics("ttf,itl")
