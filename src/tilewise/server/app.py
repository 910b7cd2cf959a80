"""The ASGI application: routes, behind CORS and the door."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from tilewise.server.assemble import Assembly
from tilewise.server.config import ServerConfig
from tilewise.server.context import Context
from tilewise.server.guard import OPEN, Door
from tilewise.server.openapi.document import document
from tilewise.server.openapi.pages import pages
from tilewise.server.problem import Problem
from tilewise.server.routes import chat, completions, information, responses, tokenize
from tilewise.server.tracing import TraceContext

logger = logging.getLogger("tilewise")
_TICK = 1.0  # seconds between looks at whether the periodic line is due
_MODULES = (chat, completions, responses, tokenize, information)


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

    app = FastAPI(lifespan=lifespan, openapi_url=None)
    app.state.context = Context(parts.service, parts.served, parts.metrics, config)
    for module in _MODULES:
        app.include_router(module.router)
    open_paths = (*OPEN, *(("/metrics",) if config.metrics_without_key else ()))
    if not config.disable_fastapi_docs:
        app.include_router(pages(described(open_paths, keys=bool(config.api_key))))
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
        open_paths=open_paths,
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


def api_routes() -> list[APIRoute]:
    return [route for module in _MODULES for route in module.router.routes if isinstance(route, APIRoute)]


def described(open_paths: Sequence[str] = OPEN, *, keys: bool = False) -> dict[str, Any]:
    """The OpenAPI document."""
    operations = {name: operation for module in _MODULES for name, operation in module.OPERATIONS.items()}
    return document(api_routes(), operations, keys=keys, open_paths=open_paths)


def log_routes() -> None:
    """In vLLM's words."""
    logger.info("Available routes are:")
    for route in api_routes():
        logger.info("Route: %s, Methods: %s", route.path, ", ".join(sorted(route.methods or ())))
