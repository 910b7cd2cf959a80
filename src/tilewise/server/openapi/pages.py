"""/openapi.json, and /docs and /redoc, which show it without asking any other address for anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from tilewise.errors import InvalidConfig

_ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css", "redoc.standalone.js", "favicon.png")
# Should a page ask for something else nevertheless, the browser refuses.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; worker-src blob:"
)
_HEADERS = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}


def pages(describe: Callable[[], Mapping[str, Any]]) -> APIRouter:
    """Links among them are relative, so that they hold behind a proxy, too. The document is made for who first asks."""
    router, folder, document = APIRouter(include_in_schema=False), assets(), cache(describe)

    @router.get("/openapi.json")  # in a thread, as making it takes a while
    def openapi(_: Request) -> Response:
        return JSONResponse(document())

    @router.get("/docs")
    async def docs(_: Request) -> Response:
        page = get_swagger_ui_html(
            openapi_url="openapi.json",
            title="Tilewise",
            swagger_js_url="docs/swagger-ui-bundle.js",
            swagger_css_url="docs/swagger-ui.css",
            swagger_favicon_url="docs/favicon.png",
            swagger_ui_parameters={"validatorUrl": None},
        )
        return Response(page.body, headers=_HEADERS, media_type="text/html")

    @router.get("/redoc")
    async def redoc(_: Request) -> Response:
        page = get_redoc_html(
            openapi_url="openapi.json",
            title="Tilewise",
            redoc_js_url="docs/redoc.standalone.js",
            redoc_favicon_url="docs/favicon.png",
            with_google_fonts=False,
        )
        return Response(page.body, headers=_HEADERS, media_type="text/html")

    for name in _ASSETS:
        router.add_api_route(f"/docs/{name}", _asset(folder / name))
    return router


def assets() -> Path:
    """The folder of the pages' scripts and styles, which a package of its own ships; its code is not run."""
    found = find_spec("fastapi_offline")
    if found is None or found.origin is None:
        raise InvalidConfig("/docs needs the package fastapi-offline: pip install it, or pass --disable-fastapi-docs.")
    return Path(found.origin).parent / "static"


def _asset(path: Path) -> Any:
    async def asset(_: Request) -> Response:
        return FileResponse(path, headers={"Cache-Control": "max-age=86400"})

    return asset
