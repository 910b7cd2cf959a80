"""Routes that tell of the server: models, health, version, metrics, load."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import tilewise
from tilewise.errors import UnknownModel
from tilewise.server.context import context_of
from tilewise.server.errors import Problem
from tilewise.server.openapi.operation import Operation
from tilewise.server.protocol.answers import Load, ModelCard, ModelList, Version
from tilewise.server.routes.json_route import plain_router

router = plain_router()
_METRICS = "text/plain; version=1.0.0; charset=utf-8"
_HEALTH = Operation(gives="Requests are taken.", statuses=(503,))
OPERATIONS = {
    "models": Operation(gives="The names that requests may give as `model`.", answer=ModelList),
    "model": Operation(gives="The model of this name.", answer=ModelCard, statuses=(404,)),
    "health": _HEALTH,
    "ping": _HEALTH,
    "version": Operation(gives="The version.", answer=Version),
    "metrics": Operation(gives="Prometheus's text format.", answer="text/plain"),
    "load": Operation(gives="Their number.", answer=Load),
}


@router.get("/v1/models")
async def models(raw: Request) -> Response:
    """The model, under each of its names."""
    served = context_of(raw).served
    return JSONResponse({"object": "list", "data": [_model(name, served) for name in served.names]})


@router.get("/v1/models/{model:path}")
async def model(raw: Request) -> Response:
    """The model under one of its names, which may have slashes in it."""
    served, name = context_of(raw).served, raw.path_params["model"]
    if not name:
        return await models(raw)
    try:
        return JSONResponse(_model(served.resolve(name), served))
    except UnknownModel as error:
        problem = Problem.of(error)
        return JSONResponse(problem.body, problem.status)


def _model(name: str, served: Any) -> dict[str, Any]:
    permission = {
        "id": f"modelperm-{name}",
        "object": "model_permission",
        "created": served.created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "tilewise",
        "root": served.root,
        "parent": None,
        "max_model_len": served.max_model_len,
        "permission": [permission],
    }


@router.get("/health")
async def health(raw: Request) -> Response:
    """200 while requests are taken, 503 while the engine is away."""
    engine = context_of(raw).service.engine
    if engine.state == "ready":
        return Response(status_code=200)
    return Response(status_code=503, headers={"Retry-After": str(engine.retry_after)})


@router.api_route("/ping", methods=["GET", "POST"])
async def ping(raw: Request) -> Response:
    """The same as /health, as SageMaker asks."""
    return await health(raw)


@router.get("/version")
async def version(_: Request) -> Response:
    """Of Tilewise."""
    return JSONResponse({"version": tilewise.__version__})


@router.get("/metrics")
async def metrics(raw: Request) -> Response:
    """For Prometheus, under vLLM's names."""
    context = context_of(raw)
    context.metrics.media(context.service.preparer.cache.counts)
    return Response(context.metrics.render(), media_type=_METRICS)


@router.get("/load")
async def load(raw: Request) -> Response:
    """Requests that are being answered."""
    return JSONResponse({"server_load": context_of(raw).service.in_flight})
