"""Context: all parts of one server, which its routes share, and what they tell of a request beside its answer."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from starlette.requests import Request as HttpRequest

from tilewise.config import EngineConfig
from tilewise.engine.counters import Counters, StatsLog
from tilewise.ignored import Ignored
from tilewise.inputs.grammar import name_unenforced
from tilewise.remote.supervisor import State
from tilewise.remote.wire import Outbox
from tilewise.server.answers import CompletionHead, request_times
from tilewise.server.config import ServerConfig
from tilewise.server.responses.store import ResponseStore
from tilewise.server.served import ServedModel
from tilewise.server.service import AnswerService
from tilewise.types import Request, RequestOutput

logger = logging.getLogger("tilewise")
_TICK = 1.0  # seconds between looks at whether the periodic line is due


@dataclass
class Context:
    """All parts of one server. It watches the engines and passes on what they report, to metrics and to the log."""

    service: AnswerService
    served: ServedModel
    stats: list[StatsLog]
    """The periodic log line of each engine; empty under `--disable-log-stats`."""
    config: ServerConfig
    engine: EngineConfig
    checkpoint: Path
    """Folder of the model's files."""
    store: ResponseStore | None = None
    """The responses that are kept; None = none are."""
    phases: str = ""
    """Seconds of each phase of the start, as text for the log."""
    gave_up: bool = False
    _ends: list[Callable[[], None]] = field(default_factory=list)

    def on_give_up(self, end: Callable[[], None]) -> None:
        """Register `end`, which is called when the engines, or the only one, died too often to be started again."""
        self._ends.append(end)

    def became(self, engine: int, state: State) -> None:
        """Note the new state of an engine; this method and `took` make up `Watcher`."""
        self.service.metrics.engines[engine].engine_is(state == "ready", state == "restarting")
        if self.service.engine.state == "failed":
            self.gave_up = True
            for end in self._ends:
                end()

    def took(self, engine: int, outbox: Outbox) -> None:
        self.service.metrics.engines[engine].take(outbox.counters, outbox.load)
        self.service.metrics.media(*self.service.preparer.media_use)
        self._tick(engine, outbox.counters)

    async def tick(self) -> None:
        """Log the periodic line of each engine whenever it is due, until cancelled."""
        while True:
            await asyncio.sleep(_TICK)
            for engine in self.service.engine.engines:
                self._tick(engine.number, engine.counters)

    def _tick(self, engine: int, counters: Counters) -> None:
        """Log an engine's line if it is due. Pictures are cut before all engines, and stand in the first one's line."""
        if not self.stats:
            return
        if engine == 0:
            media = self.service.preparer.media_counts
            counters = replace(counters, mm_cache_queries=media.queries, mm_cache_hits=media.hits)
        self.stats[engine].tick(counters, self.service.engine.engines[engine].load, time.monotonic())

    def scope(self, raw: HttpRequest, salt: str | None) -> str:
        """Return whose request this is, as far as one can tell: a digest of its key, if there are keys, and salt."""
        headers = raw.headers
        key = headers.get("authorization") or headers.get("x-api-key", "") if self.config.api_key else ""
        return hashlib.sha256(f"{key}\0{salt or ''}".encode()).hexdigest()

    def load_report(self, raw: HttpRequest, ignored: Ignored) -> dict[str, str]:
        """Return the header that tells load balancers how busy a server is (ORCA), as TEXT or JSON, if a request asks.

        Source: xds.data.orca.v3.OrcaLoadReport; the names are those that vLLM reports.
        """
        form, load = raw.headers.get("endpoint-load-metrics-format", "").upper(), self.service.engine.load
        found = {"kv_cache_usage_perc": float(load.kv_cache_usage), "num_requests_waiting": float(load.waiting)}
        if form == "JSON":
            return {"endpoint-load-metrics": f"JSON {json.dumps({'named_metrics': found})}"}
        if form == "TEXT":
            pairs = ", ".join(f"named_metrics.{name}={value}" for name, value in found.items())
            return {"endpoint-load-metrics": f"TEXT {pairs}"}
        if form:
            ignored.add("endpoint-load-metrics-format", "the load is reported as TEXT or JSON")
        return {}

    def add_times(self, body: CompletionHead, *outputs: RequestOutput) -> None:
        """Add a request's times to its answer, under `--enable-per-request-metrics`; none if there are several."""
        one = len(outputs) == 1 and len(outputs[0].outputs) == 1
        if one and self.config.enable_per_request_metrics:
            body["metrics"] = request_times(outputs[0])

    def received(self, name: str, request: Request, ignored: Ignored) -> None:
        """Name in `ignored` what of a request's grammar is not enforced, and log the request under `name`."""
        name_unenforced(request, ignored, self.service.preparer.tokenizer.vocab_size)
        if self.config.enable_log_requests:
            prompt = (request.prompt or "")[: self.config.max_log_len]
            tokens, tiles = len(request.prompt_ids), request.num_tiles
            text = "Received request %s: prompt: %r, %d tokens, %d tiles, params: %s"
            logger.info(text, name, prompt, tokens, tiles, request.sampling)

    def log_answers(self, name: str, output: RequestOutput) -> None:
        for answer in output.outputs if self.config.enable_log_outputs else ():
            text = answer.text[: self.config.max_log_len]
            logger.info("Generated response %s: output: %r, finish_reason: %s", name, text, answer.finish_reason)


def context_of(raw: HttpRequest) -> Context:
    return cast(Context, raw.app.state.context)
