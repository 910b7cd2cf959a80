"""Results of a run on a server: vLLM's table, a picture of latency against load, and JSON under vLLM's names."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tilewise.bench.figures import Figures, ServerMetrics, Spread, percent_name
from tilewise.bench.load import LoadLevel
from tilewise.bench.options import NotSaved, SavingOptions, read_pairs
from tilewise.bench.requests import RequestOutcome
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


def read_metrics(text: str) -> tuple[str, ...]:
    """Read the names of --percentile-metrics. Raises InvalidConfig."""
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in TITLES:
            hint = did_you_mean(name, TITLES)
            raise InvalidConfig(f"--percentile-metrics knows {', '.join(TITLES)}, got {name!r}.{hint}")
    return names


def table(figures: Figures, load: LoadLevel, metrics: Sequence[str]) -> str:
    lines = [
        heading(" Serving Benchmark Result ", "="),
        *_totals(figures, load),
        *_pictures(figures),
        *(line for name in TITLES if name in metrics for line in _spread(figures, name)),
        *_guesses(figures.server),
        *_failures(figures),
        "=" * WIDTH,
    ]
    return "\n".join(lines)


def row(label: str, value: float) -> str:
    """Return a row of the table: whole numbers as they are, others with two decimals.

    >>> row("Successful requests:", 3)
    'Successful requests:                     3         '
    """
    return f"{label:<{LABEL}} {value:<10}" if isinstance(value, int) else f"{label:<{LABEL}} {value:<10.2f}"


def heading(text: str, fill: str = "-") -> str:
    return f"{text:{fill}^{WIDTH}}"


def _totals(figures: Figures, load: LoadLevel) -> Iterator[str]:
    yield row("Successful requests:", figures.completed)
    yield row("Failed requests:", figures.failed)
    if load.concurrency is not None:
        yield row("Maximum request concurrency:", load.concurrency)
    if not math.isinf(load.arrivals.rate):
        yield row("Request rate configured (RPS):", float(load.arrivals.rate))
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
    """Yield the rows about pictures, where the server says that there were some."""
    if not figures.total_image_tokens:
        return
    yield heading("Pictures")
    yield row("Total input vision tokens:", figures.total_image_tokens)
    if figures.total_tiles is not None:
        yield row("Total tiles:", figures.total_tiles)
    server = figures.server
    if server.tiles_encoded is not None:
        yield row("Tiles encoded:", server.tiles_encoded)
    if server.mean_preprocess_ms is not None:
        yield row("Mean preprocessing time (ms):", server.mean_preprocess_ms)
    if server.mean_encode_ms is not None:
        yield row("Mean wait for tiles (ms):", server.mean_encode_ms)


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


def _guesses(server: ServerMetrics) -> Iterator[str]:
    if not server.drafts:
        return
    yield heading("Speculative Decoding")
    yield row("Acceptance rate (%):", server.acceptance_rate)
    yield row("Acceptance length:", server.acceptance_length)
    yield row("Drafts:", server.drafts)
    yield row("Draft tokens:", server.draft_tokens)
    yield row("Accepted tokens:", server.accepted_tokens)


def _failures(figures: Figures) -> Iterator[str]:
    if figures.failures:
        yield heading("Failed Requests")
    for kind, count in figures.failures.items():
        yield row(f"{kind}:", count)


def failure_lines(texts: Sequence[str], most: int = 10) -> list[str]:
    """Return a line for each different failure, how often it came and what it was; the commonest first."""
    counts = Counter(texts)
    rest = len(counts) - most
    return [f"{count} x {text}" for text, count in counts.most_common(most)] + [f"and {rest} others"] * (rest > 0)


Runs = Sequence[tuple[LoadLevel, Figures]]
_PANELS = (("ttft", "time to first token, ms"), ("tpot", "time per output token, ms"), ("e2el", "whole answer, ms"))


def draw(runs: Runs, model: str, path: Path) -> None:
    """Draw latency and throughput against load, as PNG. Raises NotSaved."""
    from matplotlib.figure import Figure

    label, loads = x_axis(runs)
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels: Any = figure.subplots(1, len(_PANELS) + 1)
    for axes, (name, title) in zip(panels, _PANELS, strict=False):
        _panel(axes, runs, loads, name)
        axes.set(xlabel=label, ylabel=title, ylim=(0, None))
        axes.legend()
    panels[-1].plot(loads, [figures.output_throughput for _, figures in runs], marker="o")
    panels[-1].set(xlabel=label, ylabel="output tokens a second", ylim=(0, None))
    figure.suptitle(f"{model}, {runs[0][1].completed + runs[0][1].failed} requests a point")
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise NotSaved(f"The picture could not be saved in {path}: {error.strerror or error}.") from None


def x_axis(runs: Runs) -> tuple[str, list[float]]:
    """Return a title and a number for each run by which the loads differ.

    They are the rates where all are finite, else the limits of concurrency, else the rates that were reached.
    """
    rates = [load.arrivals.rate for load, _ in runs]
    limits = [load.concurrency for load, _ in runs]
    if len(set(rates)) > 1 and not any(map(math.isinf, rates)):
        return "requests a second", rates
    if all(limit is not None for limit in limits) and len(set(limits)) > 1:
        return "requests at once, at most", [float(limit or 0) for limit in limits]
    return "requests a second, answered", [figures.request_throughput for _, figures in runs]


def _panel(axes: Any, runs: Runs, loads: Sequence[float], name: str) -> None:
    spreads = [figures.spreads[name] for _, figures in runs]
    axes.plot(loads, [spread.median for spread in spreads], marker="o", label="median")
    if spreads[0].percentiles:
        percent = spreads[0].percentiles[-1][0]
        last = [spread.percentiles[-1][1] for spread in spreads]
        axes.plot(loads, last, marker="o", linestyle="--", label=f"P{percent_name(percent)}")


@dataclass(frozen=True, slots=True)
class RunFacts:
    """The facts about a run that its result states."""

    backend: str
    model: str
    tokenizer: str | None
    count: int
    load: LoadLevel


def result_json(about: RunFacts, saving: SavingOptions, figures: Figures, now: datetime) -> dict[str, Any]:
    arrivals = about.load.arrivals
    ramp = arrivals.ramp
    ramped = {} if ramp is None else {
        "ramp_up_strategy": ramp.strategy, "ramp_up_start_rps": ramp.start, "ramp_up_end_rps": ramp.end
    }  # fmt: skip
    return {
        "date": f"{now:%Y%m%d-%H%M%S}",
        "endpoint_type": about.backend,
        "backend": about.backend,
        "label": saving.label,
        "model_id": about.model,
        "tokenizer_id": about.tokenizer,
        "num_prompts": about.count,
        **read_pairs(saving.metadata, "--metadata"),
        "request_rate": "inf" if math.isinf(arrivals.rate) else arrivals.rate,
        "burstiness": arrivals.burstiness,
        "max_concurrency": about.load.concurrency,
        **ramped,
        **figures.as_json(),
    }


def details(answers: Sequence[RequestOutcome]) -> dict[str, list[Any]]:
    """Return the figures of each request, in the order of sending; an answer that failed has 0 output tokens."""
    return {
        "input_lens": [answer.tokens.prompt or 0 for answer in answers],
        "output_lens": [0 if answer.failure else answer.output_tokens for answer in answers],
        "start_times": [answer.start for answer in answers],
        "queue_times": [answer.queued for answer in answers],
        "ttfts": [answer.first_content for answer in answers],
        "first_chunks": [answer.first_chunk or 0.0 for answer in answers],
        "itls": [answer.gaps for answer in answers],
        "latencies": [answer.latency for answer in answers],
        "generated_texts": [answer.text for answer in answers],
        "errors": [str(answer.failure or "") for answer in answers],
    }
