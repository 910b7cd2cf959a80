"""Spans of finished requests, for OpenTelemetry. Nothing is measured here: they are made of what a request carries.

A request is one span with a child for each of the six verbs; `docs/monitoring.md` says what each covers. The libraries
are an extra: they are imported when a server is asked for traces, not before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from tilewise.environment import Environment
from tilewise.errors import InvalidConfig
from tilewise.outputs.group import AnswerGroup
from tilewise.timing import Timing
from tilewise.types import Request, RequestOutput

_EXPORT_TIMEOUT = 5  # seconds; also the most that a collector which is away delays the end of a server


@dataclass(frozen=True, slots=True)
class Stage:
    """One of the six verbs of a request's life; its moments are seconds of the monotonic clock."""

    name: str
    start: float
    stop: float


def stages(timing: Timing, end: float) -> Iterator[Stage]:
    """Yield a request's stages, without gaps from the arrival to `end`, when the answer was handed over or given up."""
    engine = timing.engine
    if engine is None:  # no token was generated: nobody here knows how far it came
        yield Stage("prepare", timing.arrival, timing.arrival + timing.inputs.total)
        return
    prepared = min(timing.arrival + timing.inputs.total, engine.queued)
    moments = (
        ("prepare", prepared),
        ("submit", engine.queued),
        ("plan", engine.scheduled),
        ("launch", timing.first_token),
        ("commit", timing.finished if timing.finished is not None else end),
        ("deliver", end),
    )
    start = timing.arrival
    for name, stop in moments:
        assert stop is not None  # a first token, which brings the engine's moments, has been planned
        yield Stage(name, start, stop)
        start = stop


class Tracing:
    """The sender of spans to a collector, in a thread of its own."""

    def __init__(self, endpoint: str, model: str) -> None:
        """Prepare to send spans to `endpoint`. Raises InvalidConfig if the libraries are missing."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise InvalidConfig(
                f"otlp_traces_endpoint needs OpenTelemetry ({error.name} is missing): pip install 'tilewise[otel]'"
            ) from None
        name = Environment.here().service_name
        self._provider = TracerProvider(resource=Resource.create({"service.name": name}), shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_TIMEOUT)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("tilewise")
        self._model = model

    def ended(self, group: AnswerGroup) -> None:
        """Send the spans of a request whose answers are whole, or not waited for any more."""
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

        now, output = time.monotonic(), group.output()
        to_wall = time.time() - now

        def nanoseconds(moment: float) -> int:
            return int((moment + to_wall) * 1e9)

        # Its parent is the caller's span, where the request named one: see TraceContext.
        whole = self._tracer.start_span(
            "request",
            kind=SpanKind.SERVER,
            start_time=nanoseconds(output.timing.arrival),
            attributes=attributes(group.request, output, self._model),
        )
        if not output.finished:
            whole.set_status(StatusCode.ERROR, "It ended before its answers were whole.")
        inside = set_span_in_context(whole)
        for stage in stages(output.timing, now):
            span = self._tracer.start_span(stage.name, inside, start_time=nanoseconds(stage.start))
            if stage.name == "prepare":
                span.set_attributes(_seconds(output.timing))
            span.end(nanoseconds(stage.stop))
        whole.end(nanoseconds(now))

    def close(self) -> None:
        """Send what has not been sent."""
        self._provider.shutdown()


def attributes(request: Request, output: RequestOutput, model: str) -> dict[str, Any]:
    """Return what a request asked for and took; names are OpenTelemetry's for generative AI where it has one."""
    usage, sampling = output.usage, request.sampling
    return {
        "gen_ai.response.model": model,
        "gen_ai.response.finish_reasons": [answer.finish_reason or "abort" for answer in output.outputs],
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.choice.count": sampling.n,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "tilewise.cached_tokens": usage.cached_tokens,
        "tilewise.image_tokens": usage.image_tokens,
        "tilewise.tiles": usage.tiles,
        "tilewise.encode.seconds": output.timing.encode or 0.0,
    }


def _seconds(timing: Timing) -> dict[str, float]:
    inputs = timing.inputs
    return {
        "tilewise.download.seconds": inputs.download,
        "tilewise.decode.seconds": inputs.decode,
        "tilewise.preprocess.seconds": inputs.preprocess,
    }


class TraceContext:
    """Middleware that makes the span that a request names in its `traceparent` the parent of the spans traced of it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from opentelemetry.context import attach, detach
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        token = attach(TraceContextTextMapPropagator().extract(Headers(raw=scope.get("headers", []))))
        try:
            await self._app(scope, receive, send)
        finally:
            detach(token)
