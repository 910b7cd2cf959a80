"""Routes whose functions take the request as it is, which spares FastAPI's reading of parameters."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response


class PlainRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        plain: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return plain


def plain_router() -> APIRouter:
    return APIRouter(route_class=PlainRoute)
