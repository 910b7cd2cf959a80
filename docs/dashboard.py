"""Writes docs/grafana/tilewise.json from the panels below. `make monitoring` runs it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).parent / "grafana" / "tilewise.json"
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_OF = 'model_name=~"$model", instance=~"$instance"'
_WIDTH, _HEIGHT = 8, 7  # of the 24 columns that a dashboard has


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str
    about: str
    lines: dict[str, str]
    """Legend -> PromQL."""
    most: float | None = None


def gauge(name: str, over: str = "sum") -> str:
    """All instances together, by `over`."""
    return f"{over}({name}{{{_OF}}})"


def rate(name: str, by: str = "") -> str:
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({name}{{{_OF}}}[$__rate_interval]))"


def share(part: str, whole: str) -> str:
    return f"{rate(part)} / {rate(whole)}"


def quantiles(name: str) -> dict[str, str]:
    """Half of all are faster than p50; `name` is a histogram."""
    buckets = rate(f"{name}_bucket", "le")
    return {f"p{100 * at:.0f}": f"histogram_quantile({at}, {buckets})" for at in (0.5, 0.9, 0.99)}


def mean(name: str) -> str:
    return share(f"{name}_sum", f"{name}_count")


ROWS: dict[str, tuple[Panel, ...]] = {
    "Load": (
        Panel(
            "Requests",
            "short",
            "Sequences that are computed, and that wait for a place. A queue that stays needs another server.",
            {"running": gauge("vllm:num_requests_running"), "waiting": gauge("vllm:num_requests_waiting")},
        ),
        Panel(
            "Tokens a second",
            "short",
            "Prompts' tokens that were computed, and tokens of answers.",
            {"prompt": rate("vllm:prompt_tokens_total"), "answers": rate("vllm:generation_tokens_total")},
        ),
        Panel(
            "Tokens of a step",
            "short",
            "How full steps are: half of them have fewer.",
            quantiles("vllm:iteration_tokens_total"),
        ),
    ),
    "Latency": (
        Panel(
            "Time to first token",
            "s",
            "From a request's arrival, before its media are fetched.",
            quantiles("vllm:time_to_first_token_seconds"),
        ),
        Panel(
            "Between tokens",
            "s",
            "Of one answer.",
            quantiles("vllm:inter_token_latency_seconds"),
        ),
        Panel(
            "Whole request",
            "s",
            "From its arrival to its last token.",
            quantiles("vllm:e2e_request_latency_seconds"),
        ),
        Panel(
            "Where the time goes",
            "s",
            "Means. Queue, prefill and decode follow each other; waiting for tiles lies within the first two.",
            {
                "queue": mean("vllm:request_queue_time_seconds"),
                "prefill": mean("vllm:request_prefill_time_seconds"),
                "decode": mean("vllm:request_decode_time_seconds"),
                "waiting for tiles": mean("tilewise:request_encode_time_seconds"),
            },
        ),
        Panel(
            "Media before the engine",
            "s",
            "Means of requests with pictures: fetching files, files to pixels, cutting and tokenizing.",
            {
                "download": mean("vllm:mm_media_download_latency_seconds"),
                "decode": mean("vllm:mm_media_decode_latency_seconds"),
                "preprocess": mean("vllm:mm_preprocessing_total_latency_seconds"),
            },
        ),
        Panel(
            "Slowest media",
            "s",
            "Fetching: one request in a hundred waits longer than p99.",
            quantiles("vllm:mm_media_download_latency_seconds"),
        ),
    ),
    "Caches and pictures": (
        Panel(
            "KV blocks in use",
            "percentunit",
            "Of the fullest instance. At 100 % sequences are preempted.",
            {"in use": gauge("vllm:kv_cache_usage_perc", "max")},
            most=1,
        ),
        Panel(
            "Hit rates",
            "percentunit",
            "Prompts' tokens that were there; tiles that nothing was encoded for; pictures that had been cut before.",
            {
                "prefix": share("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"),
                "tiles": share("tilewise:tile_cache_hits_total", "tilewise:tile_cache_queries_total"),
                "cut pictures": share("vllm:mm_cache_hits_total", "vllm:mm_cache_queries_total"),
            },
            most=1,
        ),
        Panel(
            "Tiles",
            "short",
            "Through the vision tower, a second; and the mean of a request.",
            {
                "encoded a second": rate("tilewise:tiles_encoded_total"),
                "of a request": mean("tilewise:request_tiles"),
            },
        ),
    ),
    "What goes wrong": (
        Panel(
            "Answers by their end",
            "short",
            "A second. abort: a client left, or the engine died; error: a form could not be followed to its end.",
            {"{{finished_reason}}": rate("vllm:request_success_total", "finished_reason")},
        ),
        Panel(
            "Rejections and preemptions",
            "short",
            "A second: requests that were one too many, and sequences that gave their blocks back.",
            {
                "rejected: {{reason}}": rate("vllm:admission_rejections_total", "reason"),
                "preempted": rate("vllm:num_preemptions_total"),
            },
        ),
        Panel(
            "Engine",
            "short",
            "Engines that take requests, and restarts of their processes within an hour.",
            {
                "up": gauge("tilewise:engine_up"),
                "restarts": f"sum(increase(tilewise:engine_restarts_total{{{_OF}}}[1h]))",
            },
        ),
    ),
    "Guessing ahead": (
        Panel(
            "Accepted guesses",
            "percentunit",
            "Of the guessed tokens, with --speculative-config.",
            {
                "accepted": share(
                    "vllm:spec_decode_num_accepted_tokens_total", "vllm:spec_decode_num_draft_tokens_total"
                )
            },
            most=1,
        ),
        Panel(
            "Accepted by place",
            "short",
            "Right guesses a second, by their place in a draft.",
            {"place {{position}}": rate("vllm:spec_decode_num_accepted_tokens_per_pos_total", "position")},
        ),
        Panel(
            "Tokens won by a draft",
            "short",
            "Right guesses each time that tokens were guessed; one token more comes with each step anyway.",
            {"won": share("vllm:spec_decode_num_accepted_tokens_total", "vllm:spec_decode_num_drafts_total")},
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        place = {"x": 0, "y": top, "w": 24, "h": 1}
        panels.append({"type": "row", "title": title, "id": len(panels) + 1, "gridPos": place, "panels": []})
        top += 1
        for number, panel in enumerate(row):
            x, y = number % 3 * _WIDTH, top + number // 3 * _HEIGHT
            panels.append(_panel(panel, len(panels) + 1, {"x": x, "y": y, "w": _WIDTH, "h": _HEIGHT}))
        top += (len(row) + 2) // 3 * _HEIGHT
    return {
        "title": "Tilewise",
        "uid": "tilewise",
        "tags": ["tilewise"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_SOURCES, _choice("model", "model_name"), _choice("instance", "instance")]},
        "panels": panels,
    }


_SOURCES = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _choice(name: str, label: str) -> dict[str, Any]:
    query = f"label_values(tilewise:engine_up, {label})"
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": _SOURCE,
        "definition": query,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.most is not None:
        defaults["max"] = panel.most
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "id": number,
        "gridPos": place,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"datasource": _SOURCE, "expr": query, "legendFormat": legend, "refId": chr(ord("A") + at)}
            for at, (legend, query) in enumerate(panel.lines.items())
        ],
    }


def text() -> str:
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    DASHBOARD.write_text(text(), encoding="utf-8")
