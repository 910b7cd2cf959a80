"""Metrics under vLLM's names, so that dashboards made for it work, and under `tilewise:` what only Tilewise has.

Counters of an engine come with every step and begin at zero in each new process; here they only grow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from tilewise.engine.counters import Counters, EngineLoad
from tilewise.engine.sequence import TokenDelta
from tilewise.inputs.media.cache import CacheCounts
from tilewise.inputs.media.reader import LEFT_OUT
from tilewise.plan import Resolved
from tilewise.server.bodies import KNOWN
from tilewise.types import Request, RequestOutput

_FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_BETWEEN_TOKENS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_WHOLE = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0),
    *(60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_MEDIA = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)

_COUNTERS: dict[str, tuple[str, str]] = {
    "generation_tokens": ("vllm:generation_tokens", "Tokens generated"),
    "preemptions": ("vllm:num_preemptions", "Sequences that gave their blocks back and were computed again"),
    "prefix_cache_queries": ("vllm:prefix_cache_queries", "Tokens looked up in the prefix cache"),
    "prefix_cache_hits": ("vllm:prefix_cache_hits", "Tokens found in the prefix cache"),
    "drafts": ("vllm:spec_decode_num_drafts", "Times that tokens were guessed"),
    "draft_tokens": ("vllm:spec_decode_num_draft_tokens", "Tokens guessed"),
    "accepted_tokens": ("vllm:spec_decode_num_accepted_tokens", "Tokens guessed right"),
    "tiles_encoded": ("tilewise:tiles_encoded", "Tiles that went through the vision tower"),
    "tile_cache_queries": ("tilewise:tile_cache_queries", "Tiles of prompts"),
    "tile_cache_hits": ("tilewise:tile_cache_hits", "Tiles of prompts that nothing was encoded for"),
}
"""Field of Counters -> (metric, help)."""
_PREEMPTIONS = (1, 2, 3, 4, 5, 10, 20)
_SPANS: dict[str, tuple[str, str, tuple[float, ...]]] = {
    "total": ("vllm:e2e_request_latency_seconds", "From a request's arrival to its last token", _WHOLE),
    "queue": ("vllm:request_queue_time_seconds", "Waiting in the engine", _WHOLE),
    "prefill": ("vllm:request_prefill_time_seconds", "From the first planned work to the first token", _WHOLE),
    "decode": ("vllm:request_decode_time_seconds", "From the first token to the last", _WHOLE),
    "inference": ("vllm:request_inference_time_seconds", "From the first planned work to the last token", _WHOLE),
    "encode": ("tilewise:request_encode_time_seconds", "Waiting for tiles, within queue and prefill", _WHOLE),
}
"""Property of Timing -> (metric, help, buckets)."""
_INPUTS: dict[str, tuple[str, str]] = {
    "download": ("vllm:mm_media_download_latency_seconds", "Fetching the media of a request"),
    "decode": ("vllm:mm_media_decode_latency_seconds", "Files to pixels"),
    "preprocess": ("vllm:mm_preprocessing_total_latency_seconds", "Cutting pictures, template and tokenizer"),
}
"""Field of InputTiming -> (metric, help)."""


class MetricFamilies:
    """The metrics of all engines by name, each made once, by whichever engine asks first."""

    def __init__(self, model: str) -> None:
        self.registry = CollectorRegistry()
        self._model = model
        self._made: dict[str, Any] = {}

    def metric(self, engine: int, kind: type, name: str, text: str, *more: str, **options: Any) -> Callable[..., Any]:
        """Return a function that takes values of the labels `more` and returns the engine's metric for them."""
        labels = {"model_name": self._model, "engine": f"{engine}"}
        if name not in self._made:
            self._made[name] = kind(name, text, [*labels, *more], registry=self.registry, **options)
        family = self._made[name]
        return lambda *values: family.labels(*labels.values(), *values)

    def information(self, engine: int, name: str, text: str, values: Mapping[str, object]) -> None:
        """Report facts about an engine as labels of a gauge that is always 1."""
        if name not in self._made:
            self._made[name] = Gauge(name, text, ["engine", *values], registry=self.registry)
        self._made[name].labels(f"{engine}", *map(str, values.values())).set(1)


class EngineMetrics:
    """All metrics of one engine."""

    def __init__(self, families: MetricFamilies, engine: int, max_model_len: int) -> None:
        self._families, self._engine = families, engine
        self._max_model_len = max_model_len
        self._seen = Counters()
        self._counters = {field: self._counter(*spec) for field, spec in _COUNTERS.items()}
        self._prompt_tokens = self._counter("vllm:prompt_tokens", "Tokens of prompts, computed or found in the cache")
        self._by_source = self._raw(
            Counter, "vllm:prompt_tokens_by_source", "Tokens of prompts, by where they came from", "source"
        )
        for source in ("local_compute", "local_cache_hit", "external_kv_transfer"):
            self._by_source(source).inc(0)
        self._old_queries = self._counter("vllm:gpu_prefix_cache_queries", "Old name of vllm:prefix_cache_queries")
        self._old_hits = self._counter("vllm:gpu_prefix_cache_hits", "Old name of vllm:prefix_cache_hits")
        self._accepted_at = self._raw(
            Counter, "vllm:spec_decode_num_accepted_tokens_per_pos", "Tokens guessed right, by place", "position"
        )
        self._cached = self._counter("vllm:prompt_tokens_cached", "Tokens of prompts that were cached")
        self._finished = self._raw(Counter, "vllm:request_success", "Answers, by how they ended", "finished_reason")
        self._restarts = self._counter("tilewise:engine_restarts", "Times that the engine's process was replaced")
        self._running = self._gauge("vllm:num_requests_running", "Sequences that are computed")
        self._waiting = self._gauge("vllm:num_requests_waiting", "Sequences that wait")
        self._waiting_by_reason = self._raw(
            Gauge, "vllm:num_requests_waiting_by_reason", "Sequences that wait; all of them for room", "reason"
        )
        self._usage = self._gauge("vllm:kv_cache_usage_perc", "Share of the KV blocks that are in use, 0 to 1")
        self._old_usage = self._gauge("vllm:gpu_cache_usage_perc", "Old name of vllm:kv_cache_usage_perc")
        self._up = self._gauge("tilewise:engine_up", "1 while the engine takes requests")
        self._spans = {field: self._histogram(*spec) for field, spec in _SPANS.items()}
        self._inputs = {field: self._histogram(*spec, _MEDIA) for field, spec in _INPUTS.items()}
        self._first_token = self._histogram(
            "vllm:time_to_first_token_seconds", "From arrival to the first token", _FIRST_TOKEN
        )
        self._between = self._histogram(
            "vllm:inter_token_latency_seconds", "Between tokens of an answer", _BETWEEN_TOKENS
        )
        self._old_between = self._histogram(
            "vllm:time_per_output_token_seconds", "Old name of vllm:inter_token_latency_seconds", _BETWEEN_TOKENS
        )
        self._per_token = self._histogram(
            "vllm:request_time_per_output_token_seconds", "Of each answer, the mean time of a token", _BETWEEN_TOKENS
        )
        sizes = token_buckets(max_model_len)
        self._step_tokens = self._histogram(
            "vllm:iteration_tokens_total", "Tokens computed or generated in one step", _STEP_TOKENS
        )
        self._prompt = self._histogram("vllm:request_prompt_tokens", "Tokens of a prompt", sizes)
        self._computed = self._histogram(
            "vllm:request_prefill_kv_computed_tokens", "Tokens of a prompt that were not in the prefix cache", sizes
        )
        self._generated = self._histogram("vllm:request_generation_tokens", "Tokens of a request's answers", sizes)
        self._longest = self._histogram(
            "vllm:request_max_num_generation_tokens", "Tokens of a request's longest answer", sizes
        )
        self._asked = self._histogram("vllm:request_params_max_tokens", "max_tokens of a request", sizes)
        self._n = self._histogram("vllm:request_params_n", "n of a request", (1, 2, 5, 10, 20))
        self._preempted = self._histogram(
            "vllm:request_num_preemptions", "Times that a request gave its blocks back", _PREEMPTIONS
        )
        self._tiles = self._histogram("tilewise:request_tiles", "Tiles of a request", (1, 2, 5, 10, 13, 20, 50, 100))

    def describe_caches(self, resolved: Resolved) -> None:
        """Report the sizes and options of the engine's caches, as labels of a gauge that is always 1."""
        limits = resolved.limits
        tokens = (limits.num_blocks - 1) * limits.block_size  # block 0 is a dummy, which holds no tokens
        info = {
            "block_size": limits.block_size,
            "cache_dtype": limits.kv_cache_dtype or "auto",
            "num_gpu_blocks": limits.num_blocks - 1,
            "enable_prefix_caching": limits.prefix_caching,
            "tile_pages": limits.tile_pages,
            "kv_cache_size_tokens": tokens,
            "kv_cache_max_concurrency": tokens / self._max_model_len,
        }
        self._families.information(self._engine, "vllm:cache_config_info", "Caches", info)

    def take(self, counters: Counters, load: EngineLoad) -> None:
        """Take in the engine's counters and load after a step."""
        grown = {name: getattr(counters, name) - getattr(self._seen, name) for name in (*_COUNTERS, "prompt_tokens")}
        for name, metric in self._counters.items():
            metric.inc(grown[name])
        self._prompt_tokens.inc(grown["prompt_tokens"] + grown["prefix_cache_hits"])
        self._by_source("local_compute").inc(grown["prompt_tokens"])
        self._by_source("local_cache_hit").inc(grown["prefix_cache_hits"])
        self._old_queries.inc(grown["prefix_cache_queries"])
        self._old_hits.inc(grown["prefix_cache_hits"])
        for place, count in enumerate(counters.accepted_at):
            before = self._seen.accepted_at[place] if place < len(self._seen.accepted_at) else 0
            self._accepted_at(str(place)).inc(count - before)
        if tokens := grown["prompt_tokens"] + grown["generation_tokens"]:
            self._step_tokens.observe(tokens)
        self._seen = dataclasses.replace(counters, accepted_at=list(counters.accepted_at))
        self._loaded(load)

    def _loaded(self, load: EngineLoad) -> None:
        self._running.set(load.running)
        self._waiting.set(load.waiting)
        for reason, waiting in (("capacity", load.waiting), ("deferred", 0)):
            self._waiting_by_reason(reason).set(waiting)
        self._usage.set(load.kv_cache_usage)
        self._old_usage.set(load.kv_cache_usage)

    def engine_is(self, up: bool, restarting: bool) -> None:
        """Note whether the engine takes requests. The counters of its next process begin at zero."""
        self._up.set(up)
        if not up:
            self._seen = Counters()
            self._restarts.inc(restarting)
            self._loaded(EngineLoad(0, 0, 0.0))

    def token(self, delta: TokenDelta, arrival: float, before: float | None) -> None:
        """Note the time of a token; `before` is when the one before it in its sequence came, None = it is the first."""
        if before is None:
            self._first_token.observe(delta.time - arrival)
        else:
            self._between.observe(delta.time - before)
            self._old_between.observe(delta.time - before)

    def finished(self, request: Request, output: RequestOutput) -> None:
        """Note a request whose answers have ended."""
        usage, timing = output.usage, output.timing
        for field, metric in self._spans.items():
            if (seconds := getattr(timing, field)) is not None:
                metric.observe(seconds)
        for field, metric in self._inputs.items() if request.images else ():
            metric.observe(getattr(timing.inputs, field))
        for answer in output.outputs:
            self._finished(answer.finish_reason or "abort").inc()
        longest = max(len(answer.token_ids) for answer in output.outputs)
        if longest > 1 and timing.decode is not None:
            self._per_token.observe(timing.decode / (longest - 1))
        self._cached.inc(usage.cached_tokens)
        self._prompt.observe(usage.prompt_tokens)
        self._computed.observe(usage.prompt_tokens - usage.cached_tokens)
        self._longest.observe(longest)
        self._generated.observe(usage.completion_tokens)
        self._n.observe(len(output.outputs))
        self._preempted.observe(timing.preemptions)
        if request.sampling.max_tokens is not None:
            self._asked.observe(request.sampling.max_tokens)
        if usage.tiles:
            self._tiles.observe(usage.tiles)

    def aborted(self, sequences: int) -> None:
        self._finished("abort").inc(sequences)

    def _counter(self, name: str, text: str) -> Counter:
        counter: Counter = self._raw(Counter, name, text)()
        return counter

    def _gauge(self, name: str, text: str) -> Gauge:
        gauge: Gauge = self._raw(Gauge, name, text)()
        return gauge

    def _histogram(self, name: str, text: str, buckets: Iterable[float]) -> Histogram:
        histogram: Histogram = self._raw(Histogram, name, text, buckets=tuple(buckets))()
        return histogram

    def _raw(self, kind: type, name: str, text: str, *more: str, **options: Any) -> Callable[..., Any]:
        return self._families.metric(self._engine, kind, name, text, *more, **options)


def token_buckets(most: int) -> list[int]:
    """Return 1, 2, 5, 10, 20, 50 ... up to `most`.

    >>> token_buckets(60)
    [1, 2, 5, 10, 20, 50]
    """
    found, size = [], 1
    while size <= most:
        found += [size * step for step in (1, 2, 5) if size * step <= most]
        size *= 10
    return found


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
