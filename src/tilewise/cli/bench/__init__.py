"""`tilewise bench`: benchmarks of a server and of the engine, with vLLM's flags, tables and fields."""

from __future__ import annotations

from typing import Any

from tilewise.cli.bench.engine import add_encode, add_latency, add_processor, add_startup, add_throughput
from tilewise.cli.bench.serve import add_serve

KINDS = (add_serve, add_latency, add_throughput, add_startup, add_processor, add_encode)


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "bench",
        description="Measure a server under load, or the engine in this process. Flags, tables and fields of results "
        "are those of `vllm bench`; docs/bench.md says what is defined otherwise.",
    )
    kinds = parser.add_subparsers(title="benchmarks", metavar="KIND", required=True)
    for add_kind in KINDS:
        add_kind(kinds)
