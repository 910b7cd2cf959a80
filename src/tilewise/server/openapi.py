"""The OpenAPI document, and the pages that show it without asking any other address for anything.

Routes read and write JSON themselves, so nothing can be derived from their signatures: each says what it takes and
gives in an `Operation` beside it, and the document is put together of those and of the types of bodies and answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from fastapi import APIRouter
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core.core_schema import TypedDictSchema
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from typing_extensions import TypedDict

import tilewise
from tilewise.errors import InvalidConfig
from tilewise.server.body import Body, Field, fields_of
from tilewise.server.problems import ErrorBody

if TYPE_CHECKING:
    from tilewise.server.exchange import Router

Schema = dict[str, Any]
_PLACE = "#/components/schemas/"
_NULL = {"type": "null"}


class _Schemas(GenerateJsonSchema):
    """Schemas without titles, as a property's name says all that its title would; answers have no other keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def typed_dict_schema(self, schema: TypedDictSchema) -> Schema:
        return {**super().typed_dict_schema(schema), "additionalProperties": False}


class Schemas:
    """The schemas of types, each of which stands once in the document."""

    def __init__(self) -> None:
        self.named: dict[str, Schema] = {}

    def of(self, kind: type) -> Schema:
        """Return a reference to the type's schema, which becomes one of `named`."""
        return self._named(kind.__name__, self._schema(kind))

    def of_body(self, body: type[Body]) -> Schema:
        """Return a reference to the schema of a body: its fields that are not refused, with their notes."""
        schema = self._schema(body)
        typed, required = schema["properties"] | body.shapes, schema.get("required", [])
        schema["properties"] = {
            name: _property(field, typed.get(name, {}), name in required)
            for name, field in fields_of(body).items()
            if field.effect != "refused"
        }
        return self._named(body.__name__, schema)

    def _schema(self, kind: type) -> Schema:
        schema = TypeAdapter(kind).json_schema(ref_template=f"{_PLACE}{{model}}", schema_generator=_Schemas)
        self.named |= schema.pop("$defs", {})
        return schema

    def _named(self, name: str, schema: Schema) -> Schema:
        self.named[name] = schema
        return {"$ref": f"{_PLACE}{name}"}


def _property(field: Field, schema: Schema, required: bool) -> Schema:
    """Return the schema of a field. It may be null unless it is required: then it counts as absent."""
    if field.effect == "no effect":
        return {"description": f"No effect: {field.note}"}
    if not required:
        plain = {key: value for key, value in schema.items() if key not in ("default", "description")}
        kinds = [kind for kind in schema.get("anyOf", [plain]) if kind != _NULL]
        schema = {"anyOf": [*kinds, _NULL], "default": schema.get("default")}
    return {**schema, "description": field.note}


ALWAYS = (413, 431)
"""Statuses of errors that the middleware may answer with on every path; 401 is added where there are keys."""
JSON_BODY = (400, 404, 408, 500)
GENERATION = (*JSON_BODY, 429, 503, 504)


@dataclass(frozen=True, kw_only=True)
class Operation:
    """The statement of what a route takes and answers."""

    gives: str
    """Meaning of a 200."""
    answer: type | tuple[type, ...] | str | None = None
    """Type of a 200's JSON, or its other media type; a tuple = one of several, None = an empty body."""
    body: type[Body] | tuple[type[Body], ...] | None = None
    """Type of the request's JSON; a tuple = one of several, None = no body."""
    events: type | tuple[type, ...] | None = None
    """Type of each event's JSON, where the body may ask for a stream."""
    done: bool = True
    """True if a stream ends with `[DONE]`."""
    statuses: tuple[int, ...] = ()
    """Statuses of errors, beside those of the middleware (`ALWAYS`)."""

    def entry(self, schemas: Schemas, keys: bool) -> Schema:
        """Return the entry in the document, without name and summary, which the route has."""
        codes = sorted({*self.statuses, *ALWAYS, *((401,) if keys else ())})
        errors = {str(code): {"$ref": f"#/components/responses/{code}"} for code in codes}
        entry: Schema = {"responses": {"200": self._answered(schemas), **errors}}
        if self.body is not None:
            entry["requestBody"] = _request(_several(self.body), schemas)
        return entry

    def _answered(self, schemas: Schemas) -> Schema:
        content: Schema = {}
        if isinstance(self.answer, str):
            content[self.answer] = {"schema": {"type": "string"}}
        elif self.answer is not None:
            content["application/json"] = {"schema": _one_of([schemas.of(kind) for kind in _several(self.answer)])}
        if self.events is not None:
            content["text/event-stream"] = {"itemSchema": self._event(_several(self.events), schemas)}
        return {"description": self.gives, **({"content": content} if content else {})}

    def _event(self, kinds: tuple[type, ...], schemas: Schemas) -> Schema:
        found = [schemas.of(kind) for kind in (*kinds, *((ErrorBody,) if self.done else ()))]
        data: list[Schema] = [
            {"type": "string", "contentMediaType": "application/json", "contentSchema": {"anyOf": found}}
        ]
        if self.done:
            data.append({"const": "[DONE]"})
        return {"type": "object", "properties": {"data": {"anyOf": data}}, "required": ["data"]}


Kind = TypeVar("Kind")


def _several(kinds: Kind | tuple[Kind, ...]) -> tuple[Kind, ...]:
    return kinds if isinstance(kinds, tuple) else (kinds,)


def _one_of(kinds: list[Schema]) -> Schema:
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


def _request(bodies: tuple[type[Body], ...], schemas: Schemas) -> Schema:
    examples = {name: value for body in bodies for name, value in body.examples.items()}
    media = {
        "schema": _one_of([schemas.of_body(body) for body in bodies]),
        "examples": {name: {"summary": name, "value": value} for name, value in examples.items()},
    }
    return {"required": True, "content": {"application/json": media}}


class Unauthorized(TypedDict):
    error: Literal["Unauthorized"]


_ABOUT = (
    "OpenAI's API for InternVL models. A request with a method that a path does not have is answered with 405, one to "
    "a path that is not here with 404, both with the error body of all others."
)
_RETRY = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
_CHALLENGE = {"WWW-Authenticate": {"description": "Bearer", "schema": {"type": "string"}}}
_ERRORS: dict[int, tuple[str, Schema]] = {
    400: ("The request is wrong in itself; the message names what, and what to send instead.", {}),
    401: ("`Authorization: Bearer KEY`, or `x-api-key: KEY`, is missing, or has none of the keys.", _CHALLENGE),
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
    routers: Sequence[Router], *, keys: bool = False, open_paths: Sequence[str] = (), root_path: str = ""
) -> dict[str, Any]:
    """Return the OpenAPI document. All paths but `open_paths` ask for a key, if there are keys.

    With `root_path`, the pages that show the document send their requests below that path.
    """
    schemas = Schemas()
    paths: dict[str, Any] = {}
    operations = {name: operation for router in routers for name, operation in router.operations.items()}
    for route in api_routes(routers):
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
    servers = {"servers": [{"url": root_path}]} if root_path else {}
    return {"openapi": "3.2.0", "info": info, "paths": paths, "components": components, **servers}


def api_routes(routers: Sequence[APIRouter]) -> list[APIRoute]:
    return [route for router in routers for route in router.routes if isinstance(route, APIRoute)]


def _parameters(route: APIRoute) -> Schema:
    """Return the entry for parts of the path that stand for something, such as an id."""
    found = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in route.param_convertors
    ]
    return {"parameters": found} if found else {}


def _error(code: int, schemas: Schemas) -> Schema:
    description, headers = _ERRORS[code]
    schema = schemas.of(ErrorBody)
    if code == 401:  # the second on the routes of Anthropic's API
        schema = {"anyOf": [schemas.of(Unauthorized), schema]}
    content = {"application/json": {"schema": schema}}
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
