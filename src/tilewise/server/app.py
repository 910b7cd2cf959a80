"""The ASGI application: the routes, behind the middleware for keys, limits and CORS."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from types import ModuleType
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from tilewise.server.assemble import ServerParts
from tilewise.server.config import ServerConfig
from tilewise.server.context import Context
from tilewise.server.middleware import ALWAYS_OPEN, OPEN, HttpCounter, RequestGuard
from tilewise.server.openapi.document import document, pages
from tilewise.server.responses.store import ResponseStore, StoreLimits
from tilewise.server.routes import (
    chat,
    completions,
    developer,
    information,
    invocations,
    responses,
    tokenize,
    tokenizer_info,
)
from tilewise.server.routes.json_route import IGNORED_HEADER
from tilewise.server.routes.not_found import routing_error
from tilewise.server.tracing import TraceContext

logger = logging.getLogger("tilewise")
_TICK = 1.0  # seconds between looks at whether the periodic line is due
_MODULES = (chat, completions, responses, tokenize, invocations, information)


def route_modules(config: ServerConfig) -> tuple[ModuleType, ...]:
    """Return the files of a server's routes; vLLM's variable VLLM_SERVER_DEV_MODE adds vLLM's routes for developers."""
    tokenizer = (tokenizer_info,) if config.enable_tokenizer_info_endpoint else ()
    developers = (developer,) if os.environ.get("VLLM_SERVER_DEV_MODE", "0") not in ("", "0") else ()
    return (*_MODULES, *tokenizer, *developers)


def create_app(parts: ServerParts, config: ServerConfig, modules: tuple[ModuleType, ...] | None = None) -> ASGIApp:
    """Return a server's application with the routes of the files `modules`; None = those that its options ask for.

    A request passes HttpCounter, RequestGuard, CORS and, where spans are sent, TraceContext on its way to a route.
    """
    modules = modules or route_modules(config)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        log_routes(modules)
        ticking = asyncio.create_task(_tick(parts))
        yield
        ticking.cancel()
        with suppress(asyncio.CancelledError):
            await ticking
        if store is not None:
            store.close()
        parts.service.close()

    limits = StoreLimits.from_environment()
    store = None if limits is None else ResponseStore(limits)
    app = FastAPI(lifespan=lifespan, openapi_url=None)
    app.state.context = Context(
        parts.service, parts.served, parts.metrics, config, parts.engine, parts.checkpoint, store
    )
    for module in modules:
        app.include_router(module.router)
    open_paths = ALWAYS_OPEN if config.metrics_with_key else OPEN
    if not config.disable_fastapi_docs:
        app.include_router(
            pages(partial(openapi_document, modules, open_paths, bool(config.api_key), config.root_path))
        )
    app.add_exception_handler(HTTPException, routing_error(api_routes(modules)))
    if parts.service.tracing is not None:
        app.add_middleware(TraceContext)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=config.allowed_origins,
        allow_methods=config.allowed_methods,
        allow_headers=config.allowed_headers,
        allow_credentials=config.allow_credentials,
        expose_headers=[IGNORED_HEADER, "X-Request-Id", "Retry-After"],
    )
    guard = RequestGuard(
        app,
        keys=config.api_key,
        open_paths=open_paths,
        root_path=config.root_path,
        max_body_bytes=int(config.max_body_mb * 2**20),
        max_headers=config.h11_max_header_count,
        echo_request_id=config.enable_request_id_headers,
    )
    return HttpCounter(guard, parts.metrics.registry)


async def _tick(parts: ServerParts) -> None:
    while True:
        await asyncio.sleep(_TICK)
        parts.tick()


def api_routes(modules: Sequence[ModuleType] = _MODULES) -> list[APIRoute]:
    return [route for module in modules for route in module.router.routes if isinstance(route, APIRoute)]


def openapi_document(
    modules: Sequence[ModuleType] = _MODULES, open_paths: Sequence[str] = OPEN, keys: bool = False, root_path: str = ""
) -> dict[str, Any]:
    """Return the OpenAPI document. With `root_path`, the pages that show it send their requests below that path."""
    operations = {name: operation for module in modules for name, operation in module.OPERATIONS.items()}
    found = document(api_routes(modules), operations, keys=keys, open_paths=open_paths)
    return {**found, "servers": [{"url": root_path}]} if root_path else found


def log_routes(modules: Sequence[ModuleType]) -> None:
    """Log every route in the words of vLLM's log."""
    logger.info("Available routes are:")
    for route in api_routes(modules):
        logger.info("Route: %s, Methods: %s", route.path, ", ".join(sorted(route.methods or ())))
