"""The table of a run on a server, line for line vLLM's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tilewise.bench.figures import Figures
from tilewise.bench.server_report import ServerReport
from tilewise.bench.spread import Spread, percent_name
from tilewise.errors import InvalidConfig, did_you_mean

WIDTH, LABEL = 50, 40
TITLES = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "e2el": ("E2EL", "End-to-end Latency"),
    "client_queue_time": ("Client Queue Time", "Client-side Queueing"),
    "e2el_including_client_queue": ("E2EL incl. Client Queue", "Queue-inclusive End-to-end Latency"),
}


@dataclass(frozen=True, slots=True)
class Shown:
    """What of the figures is printed."""

    metrics: tuple[str, ...] = ("ttft", "tpot", "itl")
    rate: float = math.inf
    concurrency: int | None = None

    @staticmethod
    def read_metrics(text: str) -> tuple[str, ...]:
        """Of --percentile-metrics. Raises InvalidConfig."""
        names = tuple(name.strip() for name in text.split(","))
        for name in names:
            if name not in TITLES:
                hint = did_you_mean(name, TITLES)
                raise InvalidConfig(f"--percentile-metrics knows {', '.join(TITLES)}, got {name!r}.{hint}")
        return names


def table(figures: Figures, shown: Shown) -> str:
    lines = [
        heading(" Serving Benchmark Result ", "="),
        *_totals(figures, shown),
        *_pictures(figures),
        *(line for name in TITLES if name in shown.metrics for line in _spread(figures, name)),
        *_guesses(figures.server),
        *_failures(figures),
        "=" * WIDTH,
    ]
    return "\n".join(lines)


def row(label: str, value: float) -> str:
    """
    >>> row("Successful requests:", 3)
    'Successful requests:                     3         '
    """
    return f"{label:<{LABEL}} {value:<10}" if isinstance(value, int) else f"{label:<{LABEL}} {value:<10.2f}"


def heading(text: str, fill: str = "-") -> str:
    return f"{text:{fill}^{WIDTH}}"


def _totals(figures: Figures, shown: Shown) -> Iterator[str]:
    yield row("Successful requests:", figures.completed)
    yield row("Failed requests:", figures.failed)
    if shown.concurrency is not None:
        yield row("Maximum request concurrency:", shown.concurrency)
    if not math.isinf(shown.rate):
        yield row("Request rate configured (RPS):", float(shown.rate))
    yield row("Benchmark duration (s):", figures.duration)
    yield row("Total input tokens:", figures.total_input_tokens)
    yield row("Total generated tokens:", figures.total_output_tokens)
    yield row("Request throughput (req/s):", figures.request_throughput)
    if figures.request_goodput is not None:
        yield row("Request goodput (req/s):", figures.request_goodput)
    yield row("Output token throughput (tok/s):", figures.output_throughput)
    yield row("Peak output token throughput (tok/s):", figures.max_output_tokens_per_s)
    yield row("Peak concurrent requests:", float(figures.max_concurrent_requests))
    yield row("Total token throughput (tok/s):", figures.total_token_throughput)


def _pictures(figures: Figures) -> Iterator[str]:
    """Where the server says that there were some."""
    if not figures.total_image_tokens:
        return
    yield heading("Pictures")
    yield row("Total input vision tokens:", figures.total_image_tokens)
    if figures.total_tiles is not None:
        yield row("Total tiles:", figures.total_tiles)
    server = figures.server or ServerReport()
    if server.tiles_encoded is not None:
        yield row("Tiles encoded:", server.tiles_encoded)
    if server.preprocess is not None:
        yield row("Mean preprocessing time (ms):", 1000 * server.preprocess)
    if server.encode is not None:
        yield row("Mean wait for tiles (ms):", 1000 * server.encode)


def _spread(figures: Figures, name: str) -> Iterator[str]:
    short, title = TITLES[name]
    spread: Spread = figures.spreads[name]
    yield heading(title)
    yield row(f"Mean {short} (ms):", spread.mean)
    yield row(f"Median {short} (ms):", spread.median)
    for percent, value in spread.percentiles:
        yield row(f"P{percent_name(percent)} {short} (ms):", value)
    if name == "ttft":
        yield row("Mean time to first chunk (ms):", figures.spreads["first_chunk"].mean)


def _guesses(server: ServerReport | None) -> Iterator[str]:
    if server is None or not server.drafts:
        return
    yield heading("Speculative Decoding")
    yield row("Acceptance rate (%):", 100 * server.accepted_tokens / max(server.draft_tokens, 1))
    yield row("Acceptance length:", 1 + server.accepted_tokens / server.drafts)
    yield row("Drafts:", server.drafts)
    yield row("Draft tokens:", server.draft_tokens)
    yield row("Accepted tokens:", server.accepted_tokens)


def _failures(figures: Figures) -> Iterator[str]:
    if figures.failures:
        yield heading("Failed Requests")
    for kind, count in figures.failures.items():
        yield row(f"{kind}:", count)


def failure_lines(texts: Sequence[str], most: int = 10) -> list[str]:
    """Of each different failure, how often it came and what it was; the commonest first."""
    counts = {text: texts.count(text) for text in dict.fromkeys(texts)}
    commonest = sorted(counts.items(), key=lambda item: -item[1])
    rest = len(commonest) - most
    return [f"{count} x {text}" for text, count in commonest[:most]] + [f"and {rest} others"] * (rest > 0)
