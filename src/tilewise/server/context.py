"""Context: what a route finds beside the request."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import cast

from starlette.requests import Request as HttpRequest

from tilewise.outputs.group import AnswerGroup
from tilewise.server.config import ServerConfig
from tilewise.server.metrics import Metrics
from tilewise.server.served import ServedModel
from tilewise.server.service import Service
from tilewise.types import Request

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

    def scope(self, raw: HttpRequest, salt: str | None) -> str:
        """Whose requests this one belongs to, as far as one can tell: its key's, and among those its salt's."""
        key = raw.headers.get("authorization", "") if self.config.api_key else ""
        return hashlib.sha256(f"{key}\0{salt or ''}".encode()).hexdigest()

    @property
    def log(self) -> RequestLog:
        config = self.config
        return RequestLog(config.enable_log_requests, config.enable_log_outputs, config.max_log_len)


def context_of(raw: HttpRequest) -> Context:
    return cast(Context, raw.app.state.context)
