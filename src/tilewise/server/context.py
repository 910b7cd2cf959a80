"""Context: what a route finds beside the request."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from starlette.requests import Request as HttpRequest

from tilewise.config import EngineConfig
from tilewise.ignored import Ignored
from tilewise.outputs.group import AnswerGroup
from tilewise.server.config import ServerConfig
from tilewise.server.metrics import Metrics, request_times
from tilewise.server.responses.store import ResponseStore
from tilewise.server.served import ServedModel
from tilewise.server.service import Service
from tilewise.types import Request, RequestOutput

logger = logging.getLogger("tilewise")


@dataclass(frozen=True)
class RequestLog:
    """What is logged of requests, if anything."""

    requests: bool
    outputs: bool
    max_length: int | None

    def received(self, name: str, request: Request) -> None:
        if self.requests:
            prompt = (request.prompt or "")[: self.max_length]
            tokens, tiles = len(request.prompt_ids), request.num_tiles
            logger.info(
                "Received request %s: prompt: %r, %d tokens, %d tiles, params: %s",
                name,
                prompt,
                tokens,
                tiles,
                request.sampling,
            )

    def answered(self, name: str, group: AnswerGroup) -> None:
        if self.outputs:
            for answer in group.output().outputs:
                text = answer.text[: self.max_length]
                logger.info("Generated response %s: output: %r, finish_reason: %s", name, text, answer.finish_reason)


@dataclass(frozen=True)
class Context:
    """One server's, for all its routes."""

    service: Service
    served: ServedModel
    metrics: Metrics
    config: ServerConfig
    engine: EngineConfig
    checkpoint: Path
    """Folder of the model's files."""
    store: ResponseStore | None = None
    """Where responses are kept; None = nowhere."""

    def scope(self, raw: HttpRequest, salt: str | None) -> str:
        """Whose requests this one belongs to, as far as one can tell: its key's, and among those its salt's."""
        key = raw.headers.get("authorization", "") if self.config.api_key else ""
        return hashlib.sha256(f"{key}\0{salt or ''}".encode()).hexdigest()

    def load_report(self, raw: HttpRequest, ignored: Ignored) -> dict[str, str]:
        """The header by which load balancers learn how busy a server is (ORCA), if a request asks for it: TEXT or JSON.

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

    def times_of(self, *outputs: RequestOutput) -> dict[str, Any]:
        """What an answer says of its request's times, under `--enable-per-request-metrics`; of several, nothing."""
        one = len(outputs) == 1 and len(outputs[0].outputs) == 1
        return {"metrics": request_times(outputs[0])} if one and self.config.enable_per_request_metrics else {}

    @property
    def log(self) -> RequestLog:
        config = self.config
        return RequestLog(config.enable_log_requests, config.enable_log_outputs, config.max_log_len)


def context_of(raw: HttpRequest) -> Context:
    return cast(Context, raw.app.state.context)
