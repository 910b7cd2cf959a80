"""HttpCounter: an ASGI layer that counts and times requests under the names of prometheus-fastapi-instrumentator.

Those are the names that vLLM's servers have, and dashboards of their traffic use. Labels are bounded, whatever clients
send: a handler is the template of a route, or `none`, and a status is its first digit.
"""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_UNCOUNTED = ("/metrics", "/health", "/load", "/ping", "/version", "/server_info")
"""Routes that probes ask all day, which vLLM leaves out, too."""
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_FINE = (0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, *(step / 2 for step in range(2, 11)), 7.5, 10, 30, 60)
_COARSE = (0.1, 0.5, 1)


class HttpCounter:
    """Passes everything on to `app`."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self._app = app
        self._requests = Counter(
            "http_requests", "Requests over HTTP, by route", ["handler", "method", "status"], registry=registry
        )
        self._received = Summary(
            "http_request_size_bytes", "Declared length of requests", ["handler"], registry=registry
        )
        self._sent = Summary("http_response_size_bytes", "Declared length of answers", ["handler"], registry=registry)
        self._fine = Histogram(
            "http_request_duration_highr_seconds",
            "From a request to its whole answer",
            buckets=_FINE,
            registry=registry,
        )
        self._coarse = Histogram(
            "http_request_duration_seconds",
            "The same, by route",
            ["handler", "method"],
            buckets=_COARSE,
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, sent = time.perf_counter(), 500, "0"
        inner = dict(scope)  # in which the routes leave which of them it was

        async def watched(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status, sent = message["status"], Headers(raw=message["headers"]).get("content-length", "0")
            await send(message)

        try:
            await self._app(inner, receive, watched)
        finally:
            handler = getattr(inner.get("route"), "path", "none")
            if handler not in _UNCOUNTED:
                self.count(handler, scope, status, int(sent), time.perf_counter() - began)

    def count(self, handler: str, scope: Scope, status: int, sent: int, seconds: float) -> None:
        """One request that was answered."""
        method = scope["method"] if scope["method"] in _METHODS else "other"
        declared = Headers(scope=scope).get("content-length", "0")
        self._requests.labels(handler, method, f"{status // 100}xx").inc()
        self._received.labels(handler).observe(int(declared) if declared.isdecimal() else 0)
        self._sent.labels(handler).observe(sent)
        self._fine.observe(seconds)
        self._coarse.labels(handler, method).observe(seconds)
