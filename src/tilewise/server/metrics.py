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
from tilewise.inputs.media.cache import CacheCounts
from tilewise.inputs.media.reader import LEFT_OUT
from tilewise.plan import Resolved
from tilewise.server.bodies import KNOWN
from tilewise.server.request_id import HEADER
from tilewise.types import Request, RequestOutput, TokenDelta

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

_COUNTERS: dict[str, tuple[str, ...]] = {
    "vllm:generation_tokens": ("Tokens generated",),
    "vllm:num_preemptions": ("Sequences that gave their blocks back and were computed again",),
    "vllm:prefix_cache_queries": ("Tokens looked up in the prefix cache",),
    "vllm:prefix_cache_hits": ("Tokens found in the prefix cache",),
    "vllm:spec_decode_num_drafts": ("Times that tokens were guessed",),
    "vllm:spec_decode_num_draft_tokens": ("Tokens guessed",),
    "vllm:spec_decode_num_accepted_tokens": ("Tokens guessed right",),
    "tilewise:tiles_encoded": ("Tiles that went through the vision tower",),
    "tilewise:tile_cache_queries": ("Tiles of prompts",),
    "tilewise:tile_cache_hits": ("Tiles of prompts that nothing was encoded for",),
    "vllm:prompt_tokens": ("Tokens of prompts, computed or found in the cache",),
    "vllm:prompt_tokens_by_source": ("Tokens of prompts, by where they came from", "source"),
    "vllm:gpu_prefix_cache_queries": ("Old name of vllm:prefix_cache_queries",),
    "vllm:gpu_prefix_cache_hits": ("Old name of vllm:prefix_cache_hits",),
    "vllm:spec_decode_num_accepted_tokens_per_pos": ("Tokens guessed right, by place", "position"),
    "vllm:prompt_tokens_cached": ("Tokens of prompts that were cached",),
    "vllm:request_success": ("Answers, by how they ended", "finished_reason"),
    "tilewise:not_finite": ("Requests ended for numbers that were NaN or infinite, by part of the model", "part"),
    "tilewise:engine_restarts": ("Times that the engine's process was replaced",),
}
"""Name -> help, and the label that the metric has beside the model's and the engine's."""
_GAUGES: dict[str, tuple[str, ...]] = {
    "vllm:num_requests_running": ("Sequences that are computed",),
    "vllm:num_requests_waiting": ("Sequences that wait",),
    "vllm:num_requests_waiting_by_reason": ("Sequences that wait; all of them for room", "reason"),
    "vllm:kv_cache_usage_perc": ("Share of the KV blocks that are in use, 0 to 1",),
    "vllm:gpu_cache_usage_perc": ("Old name of vllm:kv_cache_usage_perc",),
    "tilewise:engine_up": ("1 while the engine takes requests",),
    "tilewise:engine_silent_seconds": (
        "Seconds since the engine last said anything while requests wait for it, else 0",
    ),
}
"""Name -> the same of a gauge."""
REJECTIONS = ("queued_requests", "queued_tokens")
"""Limits at which requests are refused."""
_UP_TO_CONTEXT = ()
"""Stands for buckets of tokens up to the longest context, which is the model's."""
_HISTOGRAMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "vllm:e2e_request_latency_seconds": ("From a request's arrival to its last token", _WHOLE),
    "vllm:request_queue_time_seconds": ("Waiting in the engine", _WHOLE),
    "vllm:request_prefill_time_seconds": ("From the first planned work to the first token", _WHOLE),
    "vllm:request_decode_time_seconds": ("From the first token to the last", _WHOLE),
    "vllm:request_inference_time_seconds": ("From the first planned work to the last token", _WHOLE),
    "tilewise:request_encode_time_seconds": ("Waiting for tiles, within queue and prefill", _WHOLE),
    "vllm:mm_media_download_latency_seconds": ("Fetching the media of a request", _MEDIA),
    "vllm:mm_media_decode_latency_seconds": ("Files to pixels", _MEDIA),
    "vllm:mm_preprocessing_total_latency_seconds": ("Cutting pictures, template and tokenizer", _MEDIA),
    "vllm:time_to_first_token_seconds": ("From arrival to the first token", _FIRST_TOKEN),
    "vllm:inter_token_latency_seconds": ("Between tokens of an answer", _BETWEEN_TOKENS),
    "vllm:time_per_output_token_seconds": ("Old name of vllm:inter_token_latency_seconds", _BETWEEN_TOKENS),
    "vllm:request_time_per_output_token_seconds": ("Of each answer, the mean time of a token", _BETWEEN_TOKENS),
    "vllm:iteration_tokens_total": ("Tokens computed or generated in one step", _STEP_TOKENS),
    "vllm:request_prompt_tokens": ("Tokens of a prompt", _UP_TO_CONTEXT),
    "vllm:request_prefill_kv_computed_tokens": (
        "Tokens of a prompt that were not in the prefix cache",
        _UP_TO_CONTEXT,
    ),
    "vllm:request_generation_tokens": ("Tokens of a request's answers", _UP_TO_CONTEXT),
    "vllm:request_max_num_generation_tokens": ("Tokens of a request's longest answer", _UP_TO_CONTEXT),
    "vllm:request_params_max_tokens": ("max_tokens of a request", _UP_TO_CONTEXT),
    "vllm:request_params_n": ("n of a request", (1, 2, 5, 10, 20)),
    "vllm:request_num_preemptions": ("Times that a request gave its blocks back", (1, 2, 3, 4, 5, 10, 20)),
    "tilewise:request_tiles": ("Tiles of a request", (1, 2, 5, 10, 13, 20, 50, 100)),
}
"""Name -> help and buckets."""
_OF_COUNTERS = {
    "generation_tokens": "vllm:generation_tokens",
    "preemptions": "vllm:num_preemptions",
    "prefix_cache_queries": "vllm:prefix_cache_queries",
    "prefix_cache_hits": "vllm:prefix_cache_hits",
    "drafts": "vllm:spec_decode_num_drafts",
    "draft_tokens": "vllm:spec_decode_num_draft_tokens",
    "accepted_tokens": "vllm:spec_decode_num_accepted_tokens",
    "tiles_encoded": "tilewise:tiles_encoded",
    "tile_cache_queries": "tilewise:tile_cache_queries",
    "tile_cache_hits": "tilewise:tile_cache_hits",
}
"""Field of Counters -> the metric that counts the same."""
_OF_TIMING = {
    "total": "vllm:e2e_request_latency_seconds",
    "queue": "vllm:request_queue_time_seconds",
    "prefill": "vllm:request_prefill_time_seconds",
    "decode": "vllm:request_decode_time_seconds",
    "inference": "vllm:request_inference_time_seconds",
    "encode": "tilewise:request_encode_time_seconds",
}
"""Property of Timing -> metric."""
_OF_INPUTS = {
    "download": "vllm:mm_media_download_latency_seconds",
    "decode": "vllm:mm_media_decode_latency_seconds",
    "preprocess": "vllm:mm_preprocessing_total_latency_seconds",
}
"""Field of InputTiming -> metric."""


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
        self._metrics: dict[str, Any] = {}
        """Metrics by name; one with a label of its own is a function of the label's value."""
        for kind, table in ((Counter, _COUNTERS), (Gauge, _GAUGES)):
            for name, (text, *label) in table.items():
                metric = families.metric(engine, kind, name, text, *label)
                self._metrics[name] = metric if label else metric()
        for name, (text, buckets) in _HISTOGRAMS.items():
            of_model = buckets or token_buckets(max_model_len)
            self._metrics[name] = families.metric(engine, Histogram, name, text, buckets=of_model)()
        for source in ("local_compute", "local_cache_hit", "external_kv_transfer"):
            self._metrics["vllm:prompt_tokens_by_source"](source).inc(0)
        for part in ("tower", "decoder"):
            self._metrics["tilewise:not_finite"](part).inc(0)

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
        names = (*_OF_COUNTERS, "prompt_tokens", "not_finite_tower", "not_finite_decoder")
        grown = {name: getattr(counters, name) - getattr(self._seen, name) for name in names}
        for field, name in _OF_COUNTERS.items():
            self._metrics[name].inc(grown[field])
        self._metrics["vllm:prompt_tokens"].inc(grown["prompt_tokens"] + grown["prefix_cache_hits"])
        by_source = self._metrics["vllm:prompt_tokens_by_source"]
        by_source("local_compute").inc(grown["prompt_tokens"])
        by_source("local_cache_hit").inc(grown["prefix_cache_hits"])
        self._metrics["vllm:gpu_prefix_cache_queries"].inc(grown["prefix_cache_queries"])
        self._metrics["vllm:gpu_prefix_cache_hits"].inc(grown["prefix_cache_hits"])
        for part in ("tower", "decoder"):
            self._metrics["tilewise:not_finite"](part).inc(grown[f"not_finite_{part}"])
        for place, count in enumerate(counters.accepted_at):
            before = self._seen.accepted_at[place] if place < len(self._seen.accepted_at) else 0
            self._metrics["vllm:spec_decode_num_accepted_tokens_per_pos"](str(place)).inc(count - before)
        if tokens := grown["prompt_tokens"] + grown["generation_tokens"]:
            self._metrics["vllm:iteration_tokens_total"].observe(tokens)
        self._seen = dataclasses.replace(counters, accepted_at=list(counters.accepted_at))
        self._loaded(load)

    def _loaded(self, load: EngineLoad) -> None:
        self._metrics["vllm:num_requests_running"].set(load.running)
        self._metrics["vllm:num_requests_waiting"].set(load.waiting)
        for reason, waiting in (("capacity", load.waiting), ("deferred", 0)):
            self._metrics["vllm:num_requests_waiting_by_reason"](reason).set(waiting)
        for name in ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"):
            self._metrics[name].set(load.kv_cache_usage)

    def silent(self, seconds: float) -> None:
        """Note for how long nothing has come from the engine though requests wait for it."""
        self._metrics["tilewise:engine_silent_seconds"].set(seconds)

    def engine_is(self, up: bool, restarting: bool) -> None:
        """Note whether the engine takes requests. The counters of its next process begin at zero."""
        self._metrics["tilewise:engine_up"].set(up)
        if not up:
            self._seen = Counters()
            self._metrics["tilewise:engine_restarts"].inc(restarting)
            self._loaded(EngineLoad(0, 0, 0.0))

    def token(self, delta: TokenDelta, arrival: float, before: float | None) -> None:
        """Note the time of a token; `before` is when the one before it in its sequence came, None = it is the first."""
        if before is None:
            self._metrics["vllm:time_to_first_token_seconds"].observe(delta.time - arrival)
            return
        for name in ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"):
            self._metrics[name].observe(delta.time - before)

    def finished(self, request: Request, output: RequestOutput) -> None:
        """Note a request whose answers have ended."""
        usage, timing = output.usage, output.timing
        seconds = {name: getattr(timing, field) for field, name in _OF_TIMING.items()}
        if request.images:
            seconds |= {name: getattr(timing.inputs, field) for field, name in _OF_INPUTS.items()}
        for answer in output.outputs:
            self._metrics["vllm:request_success"](answer.finish_reason or "abort").inc()
        longest = max(len(answer.token_ids) for answer in output.outputs)
        if longest > 1 and timing.decode is not None:
            seconds["vllm:request_time_per_output_token_seconds"] = timing.decode / (longest - 1)
        self._metrics["vllm:prompt_tokens_cached"].inc(usage.cached_tokens)
        self._observe(seconds)
        self._observe(
            {
                "vllm:request_prompt_tokens": usage.prompt_tokens,
                "vllm:request_prefill_kv_computed_tokens": usage.prompt_tokens - usage.cached_tokens,
                "vllm:request_max_num_generation_tokens": longest,
                "vllm:request_generation_tokens": usage.completion_tokens,
                "vllm:request_params_n": len(output.outputs),
                "vllm:request_num_preemptions": timing.preemptions,
                "vllm:request_params_max_tokens": request.sampling.max_tokens,
                "tilewise:request_tiles": usage.tiles or None,
            }
        )

    def _observe(self, values: Mapping[str, float | None]) -> None:
        for name, value in values.items():
            if value is not None:
                self._metrics[name].observe(value)

    def aborted(self, sequences: int) -> None:
        self._metrics["vllm:request_success"]("abort").inc(sequences)


def token_buckets(most: int) -> tuple[int, ...]:
    """Return 1, 2, 5, 10, 20, 50 ... up to `most`.

    >>> token_buckets(60)
    (1, 2, 5, 10, 20, 50)
    """
    found, size = list[int](), 1
    while size <= most:
        found += [size * step for step in (1, 2, 5) if size * step <= most]
        size *= 10
    return tuple(found)


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
        self._tile_memory = families.metric(
            0, Gauge, "tilewise:tile_memory_usage_perc", "Share of the memory for cut tiles that is in use"
        )()
        self._media_seen = CacheCounts()
        self._rejected = counter("vllm:admission_rejections", "Requests that were one too many", "reason")
        for reason in REJECTIONS:  # from the start, so that the first one is a rise
            self._rejected(reason)
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
            self._ignored(name if name in KNOWN or name in LEFT_OUT or name == HEADER else "other").inc()

    def media(self, media: CacheCounts, tile_memory: float = 0.0) -> None:
        """Take in how many pictures and frames were to be cut, and had been cut before, since the start.

        `tile_memory` is the share of the memory for their tiles that is in use.
        """
        self._tile_memory.set(tile_memory)
        self._media_queries.inc(media.queries - self._media_seen.queries)
        self._media_hits.inc(media.hits - self._media_seen.hits)
        self._media_seen = media

    def render(self) -> bytes:
        """Return the text that Prometheus reads."""
        return generate_latest(self.registry)
