"""`tilewise bench`: benchmarks of a server and of the engine, with vLLM's flags, tables and fields. One file a kind."""

from __future__ import annotations

from typing import Any

from tilewise.cli.bench import encode, latency, processor, serve, startup, throughput

KINDS = (serve, latency, throughput, startup, processor, encode)


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "bench",
        help="measure a server, or the engine",
        description="Measure a server under load, or the engine in this process. Flags, tables and fields of results "
        "are those of `vllm bench`; docs/bench.md says what is defined otherwise.",
    )
    kinds = parser.add_subparsers(title="benchmarks", metavar="KIND", required=True)
    for kind in KINDS:
        kind.add_parser(kinds)
