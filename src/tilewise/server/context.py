"""Context: the parts of a server that a route needs beside the request, such as the service and the options."""

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
from tilewise.server.service import AnswerService
from tilewise.types import Request, RequestOutput

logger = logging.getLogger("tilewise")


@dataclass(frozen=True)
class RequestLog:
    """The log of requests and answers, as far as the options ask for it."""

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
    """The parts of one server that all its routes share."""

    service: AnswerService
    served: ServedModel
    metrics: Metrics
    config: ServerConfig
    engine: EngineConfig
    checkpoint: Path
    """Folder of the model's files."""
    store: ResponseStore | None = None
    """The responses that are kept; None = none are."""

    def scope(self, raw: HttpRequest, salt: str | None) -> str:
        """Return whose request this is, as far as one can tell: a digest of its key, if there are keys, and salt."""
        key = raw.headers.get("authorization", "") if self.config.api_key else ""
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

    def times_of(self, *outputs: RequestOutput) -> dict[str, Any]:
        """Return a request's times for its answer, under `--enable-per-request-metrics`; none if there are several."""
        one = len(outputs) == 1 and len(outputs[0].outputs) == 1
        return {"metrics": request_times(outputs[0])} if one and self.config.enable_per_request_metrics else {}

    @property
    def log(self) -> RequestLog:
        config = self.config
        return RequestLog(config.enable_log_requests, config.enable_log_outputs, config.max_log_len)


def context_of(raw: HttpRequest) -> Context:
    return cast(Context, raw.app.state.context)
