"""The document: every route's operation, the errors that they share, and what authorizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.routing import APIRoute

import tilewise
from tilewise.server.openapi.operation import Operation
from tilewise.server.openapi.schemas import Schema, Schemas
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
    """`operations` are by the names of the routes; all paths but `open_paths` ask for a key, if there are keys."""
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
    """Parts of the path that stand for something, such as an id."""
    found = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in route.param_convertors
    ]
    return {"parameters": found} if found else {}


def _error(code: int, schemas: Schemas) -> Schema:
    description, headers = _ERRORS[code]
    content = {"application/json": {"schema": schemas.of(Unauthorized if code == 401 else ErrorBody)}}
    return {"description": description, "content": content, **({"headers": headers} if headers else {})}
