"""Writes the table of docs/monitoring.md from the metrics of the code. `make monitoring` runs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prometheus_client.metrics_core import Metric

from tilewise.engine.counters import Counters, EngineLoad
from tilewise.plan import Resolved
from tilewise.server.metrics import Metrics
from tilewise.server.middleware import HttpCounter
from tilewise.step import Limits

PAGE = Path(__file__).parent / "monitoring.md"
BEGIN, END = "<!-- metrics: written by make monitoring -->", "<!-- end of metrics -->"
_OF_ALL = ("model_name", "engine")
_SIZES = Limits(
    max_num_seqs=1,
    max_model_len=1024,
    max_num_batched_tokens=1024,
    block_size=16,
    num_blocks=2,
    tokens_per_tile=256,
    tile_pages=1,
    encode_budget=1,
    tiles_in_flight=1,
)


def families() -> list[Metric]:
    """All metrics, each with at least one sample: those that are kept by reason or place have none before the first."""
    metrics = Metrics("m", _SIZES.max_model_len)
    (engine,) = metrics.engines
    engine.describe_caches(Resolved(_SIZES, overlap=False, graphs=False, reasons={}))
    engine.take(Counters(accepted_at=[1]), EngineLoad(0, 0, 0.0))
    engine.aborted(1)
    metrics.rejected("queued_requests")
    metrics.ignored(["user"])
    scope = {"method": "POST", "headers": []}
    HttpCounter(_nothing, metrics.registry).count("/v1/chat/completions", scope, 200, 0, 0.1)
    return list(metrics.registry.collect())


async def _nothing(*_: object) -> None:
    """An application that is never asked."""


def table() -> str:
    return "\n".join([BEGIN, "| name | kind | further labels | what it is |", "|---|---|---|---|", *_rows(), END])


def _rows() -> Iterator[str]:
    for family in families():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = [label for label in family.samples[0].labels if label not in (*_OF_ALL, "le")]
        yield f"| `{name}` | {family.type} | {', '.join(labels)} | {family.documentation} |"


def table_in(page: str) -> str:
    return page[page.index(BEGIN) : page.index(END) + len(END)]


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(text.replace(table_in(text), table()), encoding="utf-8")
