"""The ASGI application: the routes, behind the middleware for keys, limits and CORS."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp

from tilewise.environment import Environment
from tilewise.server import information, tokenize
from tilewise.server.anthropic import routes as anthropic
from tilewise.server.chat import routes as chat
from tilewise.server.completions import routes as completions
from tilewise.server.config import ServerConfig
from tilewise.server.context import Context
from tilewise.server.exchange import IGNORED_HEADER, Router
from tilewise.server.middleware import ALWAYS_OPEN, OPEN, HttpCounter, RequestGuard
from tilewise.server.openapi import api_routes, document, pages
from tilewise.server.problems import routing_error
from tilewise.server.responses import routes as responses
from tilewise.server.tracing import TraceContext

logger = logging.getLogger("tilewise")
ROUTERS = (*(chat.router, completions.router, responses.router, anthropic.router, tokenize.router, information.router),)
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
        describe = partial(
            document, routers, keys=bool(config.api_key), open_paths=open_paths, root_path=config.root_path
        )
        app.include_router(pages(describe))
    if config.ui:
        from tilewise.ui.app import mount
        from tilewise.ui.servers import Servers

        mount(app, Servers((f"{config.url}/v1",)), UI_PATH)
        app.add_route("/", lambda _: RedirectResponse(config.root_path + UI_PATH))
        open_paths = (*open_paths, "/")
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
