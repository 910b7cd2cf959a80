"""Metrics under vLLM's names, so that dashboards made for it work, and under `tilewise:` what only Tilewise has."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from prometheus_client import (
    Counter,
    Gauge,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from tilewise.inputs.media_cache import CacheCounts
from tilewise.inputs.media_reader import LEFT_OUT
from tilewise.server.engine_metrics import EngineMetrics, MetricFamilies
from tilewise.server.fields.tables import KNOWN
from tilewise.types import RequestOutput


class Metrics:
    """All metrics of one server, labelled with the model's first name and the engine's number.

    Work that is done before all engines, such as cutting pictures, is counted with the first.
    """

    def __init__(self, model: str, max_model_len: int, engines: int = 1) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # vLLM has none
        families = MetricFamilies(model)
        self.registry = families.registry
        for of_process in (ProcessCollector, PlatformCollector, GCCollector):
            of_process(registry=self.registry)
        self.engines = tuple(EngineMetrics(families, number, max_model_len) for number in range(engines))
        counter = partial(families.metric, 0, Counter)
        self._media_queries = counter("vllm:mm_cache_queries", "Pictures and frames that were to be cut")()
        self._media_hits = counter("vllm:mm_cache_hits", "Pictures and frames that had been cut before")()
        self._media_seen = CacheCounts()
        self._rejected = counter("vllm:admission_rejections", "Requests that were one too many", "reason")
        self._ignored = counter("tilewise:ignored_fields", "Requests with a field that has no effect", "field")
        self._no_adapters()

    def _no_adapters(self) -> None:
        """Report that there are no adapters, so that panels about LoRA show nothing instead of an error."""
        labels = ["max_lora", "waiting_lora_adapters", "running_lora_adapters"]
        gauge = Gauge("vllm:lora_requests_info", "Adapters, of which there are none", labels, registry=self.registry)
        gauge.labels("0", "", "").set(0)

    def rejected(self, reason: str) -> None:
        self._rejected(reason).inc()

    def ignored(self, names: Iterable[str]) -> None:
        """Count the fields of a request that have no effect; names that clients invent are counted together."""
        for name in names:
            self._ignored(name if name in KNOWN or name in LEFT_OUT else "other").inc()

    def media(self, media: CacheCounts) -> None:
        """Take in how many pictures and frames were to be cut, and had been cut before, since the start."""
        self._media_queries.inc(media.queries - self._media_seen.queries)
        self._media_hits.inc(media.hits - self._media_seen.hits)
        self._media_seen = media

    def render(self) -> bytes:
        """Return the text that Prometheus reads."""
        return generate_latest(self.registry)


def request_times(output: RequestOutput) -> dict[str, float]:
    """Return vLLM's per-request metrics: times in milliseconds, and tokens a second.

    Tokens a second are those from the first planned work to the last token. Metrics that an answer was too short for
    are left out.
    """
    timing, tokens = output.timing, output.usage.completion_tokens
    prefill, decode, queue, inference = timing.prefill, timing.decode, timing.queue, timing.inference
    found = {
        "time_to_first_token_ms": None if prefill is None else 1000 * prefill,
        "generation_time_ms": None if decode is None else 1000 * decode,
        "queue_time_ms": None if queue is None else 1000 * queue,
        "mean_itl_ms": None if decode is None or tokens < 2 else 1000 * decode / (tokens - 1),
        "tokens_per_second": tokens / inference if inference else None,
    }
    return {name: value for name, value in found.items() if value is not None}
