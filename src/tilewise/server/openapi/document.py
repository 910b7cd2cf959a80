"""The OpenAPI document, and the pages that show it without asking any other address for anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

import tilewise
from tilewise.errors import InvalidConfig
from tilewise.server.openapi.operation import Operation, Schema, Schemas
from tilewise.server.protocol.answers import ErrorBody, Unauthorized

_ABOUT = (
    "OpenAI's API for InternVL models. A request with a method that a path does not have is answered with 405, one to "
    "a path that is not here with 404, both with the error body of all others."
)
_RETRY = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
_CHALLENGE = {"WWW-Authenticate": {"description": "Bearer", "schema": {"type": "string"}}}
_ERRORS: dict[int, tuple[str, Schema]] = {
    400: ("The request is wrong in itself; the message names what, and what to send instead.", {}),
    401: ("The header `Authorization: Bearer KEY` is missing, or has none of the server's keys.", _CHALLENGE),
    404: ("The server has no such model.", {}),
    408: ("The body came too slowly.", {}),
    413: ("The body is larger than --max-body-mb.", {}),
    429: ("As many requests wait as --max-num-queued-reqs and --max-num-queued-tokens allow.", _RETRY),
    431: ("Too many headers, or too large ones.", {}),
    500: ("The server met an error of its own.", {}),
    503: ("The engine is away, or the server is shutting down.", _RETRY),
    504: ("The request took longer than --request-timeout.", {}),
}


def document(
    routes: Sequence[APIRoute], operations: Mapping[str, Operation], *, keys: bool, open_paths: Sequence[str]
) -> dict[str, Any]:
    """Return the OpenAPI document; `operations` are by the names of the routes.

    All paths but `open_paths` ask for a key, if there are keys.
    """
    schemas = Schemas()
    paths: dict[str, Any] = {}
    for route in routes:
        locked = keys and route.path not in open_paths
        entry = {
            "summary": (route.description or "").splitlines()[0],
            **operations[route.name].entry(schemas, locked),
            **_parameters(route),
            **({"security": [{"key": []}]} if locked else {}),
        }
        for number, method in enumerate(sorted(route.methods or ())):
            name = f"{route.name}_{method.lower()}" if number else route.name
            paths.setdefault(route.path_format, {})[method.lower()] = {"operationId": name, **entry}
    components: dict[str, Any] = {
        "responses": {str(code): _error(code, schemas) for code in _ERRORS if keys or code != 401},
        "schemas": dict(sorted(schemas.named.items())),
    }
    if keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    info = {"title": "Tilewise", "version": tilewise.__version__, "description": _ABOUT}
    return {"openapi": "3.2.0", "info": info, "paths": paths, "components": components}


def _parameters(route: APIRoute) -> Schema:
    """Return the entry for parts of the path that stand for something, such as an id."""
    found = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in route.param_convertors
    ]
    return {"parameters": found} if found else {}


def _error(code: int, schemas: Schemas) -> Schema:
    description, headers = _ERRORS[code]
    content = {"application/json": {"schema": schemas.of(Unauthorized if code == 401 else ErrorBody)}}
    return {"description": description, "content": content, **({"headers": headers} if headers else {})}


_ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css", "redoc.standalone.js", "favicon.png")
# Should a page ask for something else nevertheless, the browser refuses.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; worker-src blob:"
)
_HEADERS = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}


def pages(describe: Callable[[], Mapping[str, Any]]) -> APIRouter:
    """Return a router of the document and its pages. The document is made when somebody first asks for it.

    Links among the pages are relative, so that they hold behind a proxy, too.
    """
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
    """Return the folder of the pages' scripts and styles, which a package of its own ships; its code is not run.

    Raises InvalidConfig if the package is missing.
    """
    found = find_spec("fastapi_offline")
    if found is None or found.origin is None:
        raise InvalidConfig("/docs needs the package fastapi-offline: pip install it, or pass --disable-fastapi-docs.")
    return Path(found.origin).parent / "static"


def _asset(path: Path) -> Any:
    async def asset(_: Request) -> Response:
        return FileResponse(path, headers={"Cache-Control": "max-age=86400"})

    return asset
