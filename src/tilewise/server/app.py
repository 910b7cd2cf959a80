"""The ASGI application: routes, behind CORS and the door."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

import tilewise
from tilewise.server.assemble import Assembly
from tilewise.server.config import ServerConfig
from tilewise.server.context import Context
from tilewise.server.guard import Door
from tilewise.server.problem import Problem
from tilewise.server.routes import chat, completions, information, responses, tokenize
from tilewise.server.tracing import TraceContext

logger = logging.getLogger("tilewise")
_TICK = 1.0  # seconds between looks at whether the periodic line is due
ROUTERS = (chat.router, completions.router, responses.router, tokenize.router, information.router)


def create_app(parts: Assembly, config: ServerConfig) -> ASGIApp:
    """One server's application."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        log_routes()
        ticking = asyncio.create_task(_tick(parts))
        yield
        ticking.cancel()
        with suppress(asyncio.CancelledError):
            await ticking
        parts.service.close()

    schema = None if config.disable_fastapi_docs else "/openapi.json"  # without it there are no pages either
    app = FastAPI(title="Tilewise", version=tilewise.__version__, lifespan=lifespan, openapi_url=schema)
    app.state.context = Context(parts.service, parts.served, parts.metrics, config)
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(HTTPException, _routing_error)
    if parts.service.tracing is not None:
        app.add_middleware(TraceContext)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=config.allowed_origins,
        allow_methods=config.allowed_methods,
        allow_headers=config.allowed_headers,
        allow_credentials=config.allow_credentials,
    )
    return Door(
        app,
        keys=config.api_key,
        open_paths=("/metrics",) if config.metrics_without_key else (),
        max_body_bytes=int(config.max_body_mb * 2**20),
        max_headers=config.h11_max_header_count,
        echo_request_id=config.enable_request_id_headers,
    )


async def _routing_error(_: Request, error: Exception) -> Response:
    """No such path, or not with this method."""
    assert isinstance(error, HTTPException)
    return JSONResponse(Problem(error.status_code, str(error.detail)).body, error.status_code, error.headers)


async def _tick(parts: Assembly) -> None:
    while True:
        await asyncio.sleep(_TICK)
        parts.tick()


def log_routes() -> None:
    """In vLLM's words."""
    logger.info("Available routes are:")
    for router in ROUTERS:
        for route in router.routes:
            if isinstance(route, Route):
                logger.info("Route: %s, Methods: %s", route.path, ", ".join(sorted(route.methods or ())))
