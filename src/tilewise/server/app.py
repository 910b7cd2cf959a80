"""The ASGI application: routes, behind CORS and the door."""

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

from tilewise.server.assemble import Assembly
from tilewise.server.config import ServerConfig
from tilewise.server.context import Context
from tilewise.server.guard import ALWAYS_OPEN, OPEN, Door
from tilewise.server.http_counter import HttpCounter
from tilewise.server.openapi.document import document
from tilewise.server.openapi.pages import pages
from tilewise.server.responses.store import ResponseStore, StoreLimits
from tilewise.server.routes import (
    chat,
    chat_batch,
    completions,
    developer,
    information,
    invocations,
    responses,
    tokenize,
    tokenizer_info,
)
from tilewise.server.routes.absent import routing_error
from tilewise.server.routes.exchange import IGNORED_HEADER
from tilewise.server.tracing import TraceContext

logger = logging.getLogger("tilewise")
_TICK = 1.0  # seconds between looks at whether the periodic line is due
_MODULES = (chat, chat_batch, completions, responses, tokenize, invocations, information)


def modules_of(config: ServerConfig) -> tuple[ModuleType, ...]:
    """The routes of a server, by file; those of developers are vLLM's, and asked for by its variable."""
    tokenizer = (tokenizer_info,) if config.enable_tokenizer_info_endpoint else ()
    developers = (developer,) if os.environ.get("VLLM_SERVER_DEV_MODE", "0") not in ("", "0") else ()
    return (*_MODULES, *tokenizer, *developers)


def create_app(parts: Assembly, config: ServerConfig, modules: tuple[ModuleType, ...] | None = None) -> ASGIApp:
    """One server's application, with the routes of these files; None = those of its options."""
    modules = modules or modules_of(config)

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
        app.include_router(pages(partial(described, modules, open_paths, bool(config.api_key), config.root_path)))
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
    door = Door(
        app,
        keys=config.api_key,
        open_paths=open_paths,
        root_path=config.root_path,
        max_body_bytes=int(config.max_body_mb * 2**20),
        max_headers=config.h11_max_header_count,
        echo_request_id=config.enable_request_id_headers,
    )
    return HttpCounter(door, parts.metrics.registry)


async def _tick(parts: Assembly) -> None:
    while True:
        await asyncio.sleep(_TICK)
        parts.tick()


def api_routes(modules: Sequence[ModuleType] = _MODULES) -> list[APIRoute]:
    return [route for module in modules for route in module.router.routes if isinstance(route, APIRoute)]


def described(
    modules: Sequence[ModuleType] = _MODULES, open_paths: Sequence[str] = OPEN, keys: bool = False, root_path: str = ""
) -> dict[str, Any]:
    """The OpenAPI document. With `root_path`, pages that show it ask below that."""
    operations = {name: operation for module in modules for name, operation in module.OPERATIONS.items()}
    found = document(api_routes(modules), operations, keys=keys, open_paths=open_paths)
    return {**found, "servers": [{"url": root_path}]} if root_path else found


def log_routes(modules: Sequence[ModuleType]) -> None:
    """In vLLM's words."""
    logger.info("Available routes are:")
    for route in api_routes(modules):
        logger.info("Route: %s, Methods: %s", route.path, ", ".join(sorted(route.methods or ())))
