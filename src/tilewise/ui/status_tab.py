"""StatusTab: how a server is, as small plots of its metrics over the last minutes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from tilewise.chat_server import ServerProblem, metric_sums
from tilewise.outputs.boxes import COLOURS
from tilewise.ui.servers import Servers, metrics_text

INTERVAL = 2.0
"""Seconds between two looks."""
KEPT = 150
"""Looks that are shown: five minutes."""


Look = tuple[float, dict[str, float]]
"""A moment on the monotonic clock, and the samples that a server had then, by name."""


@dataclass(frozen=True)
class Plot:
    """One plot: its title's key in `words`, and a line for each of its metrics.

    `rate`: metrics are counters, and what is shown is how much they grow a second. `ratio`: pairs of counters, and
    what is shown is the first one's growth in percent of the second's. `mean`: histograms, and what is shown is the
    mean of what they took in since the last look.
    """

    title: str
    lines: dict[str, str | tuple[str, str]]
    kind: str = "gauge"
    scale: float = 1.0

    def value(self, metric: str | tuple[str, str], now: Look, before: Look | None) -> float | None:
        """Return what a line shows at a look, without the scale; None where nothing was measured."""
        moment, samples = now
        if self.kind == "gauge":
            return samples.get(str(metric))
        if before is None:
            return None
        earlier, known = before

        def grown(name: str) -> float:
            return samples.get(name, 0.0) - known.get(name, 0.0)

        if self.kind == "rate":
            return grown(str(metric)) / max(moment - earlier, 0.001)
        above, below = metric if isinstance(metric, tuple) else (f"{metric}_sum", f"{metric}_count")
        return grown(above) / grown(below) if grown(below) > 0 else None


PLOTS = (
    Plot("running", {"running": "vllm:num_requests_running", "waiting": "vllm:num_requests_waiting"}),
    Plot("speed", {"prompt tokens": "vllm:prompt_tokens_total", "answer tokens": "vllm:generation_tokens_total",
                   "tiles": "tilewise:tiles_encoded_total"}, "rate"),
    Plot("memory", {"KV cache": "vllm:kv_cache_usage_perc"}, scale=100),
    Plot("hits", {"prefixes": ("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"),
                  "tiles": ("vllm:mm_cache_hits_total", "vllm:mm_cache_queries_total")}, "ratio", 100),
    Plot("latency", {"first token": "vllm:time_to_first_token_seconds", "queue": "vllm:request_queue_time_seconds",
                     "prefill": "vllm:request_prefill_time_seconds", "decode": "vllm:request_decode_time_seconds",
                     "encode": "tilewise:request_encode_time_seconds"}, "mean"),
)  # fmt: skip


@dataclass
class History:
    """The looks that a browser tab has had at one server."""

    url: str = ""
    looks: deque[Look] = field(default_factory=lambda: deque(maxlen=KEPT))

    def take(self, url: str, samples: dict[str, float]) -> None:
        """Add a look; another server's history begins anew."""
        if url != self.url:
            self.url, self.looks = url, deque(maxlen=KEPT)
        self.looks.append((time.monotonic(), samples))

    def rows(self, plot: Plot) -> list[tuple[float, float, str]]:
        """Return (seconds before now, value, line) of a plot; a line has no value where nothing was measured."""
        found = []
        newest = self.looks[-1][0]
        for before, look in zip([None, *self.looks], self.looks, strict=False):
            for line, metric in plot.lines.items():
                value = plot.value(metric, look, before)
                if value is not None:
                    found.append((round(look[0] - newest, 1), value * plot.scale, line))
        return found


class StatusTab:
    """Plots of the server of the chosen model; they are drawn while the tab is open."""

    def __init__(self, servers: Servers, words: Any, model: gr.Dropdown, key: gr.Textbox) -> None:
        self._servers = servers
        history = gr.State(History())
        self.line = gr.Markdown(elem_id="status-line")
        with gr.Row(elem_id="plots"):
            self.plots = [
                gr.HTML(
                    label=words(plot.title),
                    show_label=True,
                    container=True,
                    min_width=300,
                    elem_id=f"plot-{plot.title}",
                )
                for plot in PLOTS
            ]
        self.timer = gr.Timer(INTERVAL, active=False)
        self.timer.tick(self.look, [history, model, key], [history, self.line, *self.plots], show_progress="hidden")

    def look(self, history: History, label: str | None, key: str) -> list[Any]:
        """Read the metrics once, and return the plots with them."""
        try:
            card = self._servers.card(label)
            samples = metric_sums(metrics_text(card.url, key or None))
        except ServerProblem as problem:
            return [history, f"⚠️ {problem}", *[gr.skip()] * len(PLOTS)]
        history.take(card.url, samples)
        return [history, line_of(card.url, samples), *[drawn(plot, history.rows(plot)) for plot in PLOTS]]


def drawn(plot: Plot, rows: Sequence[tuple[float, float, str]]) -> str:
    """Return a plot as SVG with a legend of the newest values. One unit across is a second, up to five minutes."""
    highest = max((value for _, value, _ in rows), default=0.0) or 1.0
    span = max(30.0, -min((second for second, _, _ in rows), default=0.0))
    lines, legend = [], []
    for (name, _), colour in zip(plot.lines.items(), COLOURS, strict=False):
        points = [(second, value) for second, value, line in rows if line == name]
        path = " ".join(f"{(1 + second / span) * 300:.1f},{98 - 94 * value / highest:.1f}" for second, value in points)
        lines.append(f'<polyline points="{path}" stroke="{colour}"/>')
        newest = f"{points[-1][1]:.3g}" if points else "-"
        legend.append(f'<span><i style="background:{colour}"></i>{name} {newest}</span>')
    grid = "".join(f'<line x1="0" x2="300" y1="{y}" y2="{y}"/>' for y in (4, 51, 98))
    return (
        f'<div class="plot"><svg viewBox="0 0 300 100" preserveAspectRatio="none" role="img" aria-label="{plot.title}">'
        f'{grid}{"".join(lines)}</svg><p class="range">{highest:.3g}</p><p class="legend">{"".join(legend)}</p></div>'
    )


def line_of(url: str, samples: dict[str, float]) -> str:
    """Return one line with the numbers that matter most."""
    named: Sequence[tuple[str, str, float, str]] = (
        ("vllm:num_requests_running", "running", 1, ".0f"), ("vllm:num_requests_waiting", "waiting", 1, ".0f"),
        ("vllm:kv_cache_usage_perc", "% of the KV cache in use", 100, ".1f"),
        ("vllm:generation_tokens_total", "tokens answered", 1, ".0f"),
        ("tilewise:tiles_encoded_total", "tiles encoded", 1, ".0f"),
    )  # fmt: skip
    parts = [f"{samples[name] * scale:{form}} {words}" for name, words, scale, form in named if name in samples]
    return f"`{url}`: " + ", ".join(parts)
