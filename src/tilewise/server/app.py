"""The ASGI application: the routes, behind the middleware for keys, limits and CORS."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from tilewise.environment import Environment
from tilewise.server import information, tokenize
from tilewise.server.chat import routes as chat
from tilewise.server.completions import routes as completions
from tilewise.server.config import ServerConfig
from tilewise.server.context import Context
from tilewise.server.exchange import IGNORED_HEADER, Router
from tilewise.server.middleware import ALWAYS_OPEN, OPEN, HttpCounter, RequestGuard
from tilewise.server.openapi import document, pages
from tilewise.server.problems import routing_error
from tilewise.server.responses import routes as responses
from tilewise.server.tracing import TraceContext

logger = logging.getLogger("tilewise")
ROUTERS = (chat.router, completions.router, responses.router, tokenize.router, information.router)
"""The routes of every server of a model."""


UI_PATH = "/ui"


def routers_of(config: ServerConfig) -> tuple[Router, ...]:
    """Return a server's routes; vLLM's variable VLLM_SERVER_DEV_MODE adds vLLM's routes for developers."""
    tokenizer = (information.tokenizer_router,) if config.enable_tokenizer_info_endpoint else ()
    developers = (information.developer_router,) if Environment.here().developer_routes else ()
    return (*ROUTERS, *tokenizer, *developers)


def create_app(context: Context, routers: Sequence[Router] | None = None) -> ASGIApp:
    """Return a server's application with the routes of `routers`; None = those that its options ask for.

    With the option `ui`, the web chat asks this server at its address. Raises InvalidConfig without gradio.

    A request passes HttpCounter, RequestGuard, CORS and, where spans are sent, TraceContext on its way to a route.
    """
    config, routers = context.config, routers or routers_of(context.config)
    app = FastAPI(lifespan=partial(_lifespan, context, routers), openapi_url=None)
    app.state.context = context
    for router in routers:
        app.include_router(router)
    open_paths = ALWAYS_OPEN if config.metrics_with_key else OPEN
    if not config.disable_fastapi_docs:
        app.include_router(
            pages(partial(openapi_document, routers, open_paths, bool(config.api_key), config.root_path))
        )
    if config.ui:
        from tilewise.ui.app import mount
        from tilewise.ui.servers import Servers

        mount(app, Servers((f"{config.url}/v1",)), UI_PATH)
    app.add_exception_handler(HTTPException, routing_error(api_routes(routers)))
    if context.service.tracing is not None:
        app.add_middleware(TraceContext)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=config.allowed_origins,
        allow_methods=config.allowed_methods,
        allow_headers=config.allowed_headers,
        allow_credentials=config.allow_credentials,
        expose_headers=[IGNORED_HEADER, "X-Request-Id", "Retry-After"],
    )
    return HttpCounter(_guarded(app, config, open_paths), context.metrics.registry)


def _guarded(app: ASGIApp, config: ServerConfig, open_paths: Sequence[str]) -> RequestGuard:
    return RequestGuard(
        app,
        keys=config.api_key,
        open_paths=open_paths,
        open_below=UI_PATH if config.ui else None,
        root_path=config.root_path,
        max_body_bytes=int(config.max_body_mb * 2**20),
        max_headers=config.h11_max_header_count,
        echo_request_id=config.enable_request_id_headers,
    )


@asynccontextmanager
async def _lifespan(context: Context, routers: Sequence[Router], _: FastAPI) -> AsyncIterator[None]:
    logger.info("Available routes are:")  # in the words of vLLM's log
    for route in api_routes(routers):
        logger.info("Route: %s, Methods: %s", route.path, ", ".join(sorted(route.methods or ())))
    ticking = asyncio.create_task(context.tick())
    yield
    ticking.cancel()
    with suppress(asyncio.CancelledError):
        await ticking
    if context.store is not None:
        context.store.close()
    context.service.close()


def api_routes(routers: Sequence[Router] = ROUTERS) -> list[APIRoute]:
    return [route for router in routers for route in router.routes if isinstance(route, APIRoute)]


def openapi_document(
    routers: Sequence[Router] = ROUTERS, open_paths: Sequence[str] = OPEN, keys: bool = False, root_path: str = ""
) -> dict[str, Any]:
    """Return the OpenAPI document. With `root_path`, the pages that show it send their requests below that path."""
    operations = {name: operation for router in routers for name, operation in router.operations.items()}
    found = document(api_routes(routers), operations, keys=keys, open_paths=open_paths)
    return {**found, "servers": [{"url": root_path}]} if root_path else found
