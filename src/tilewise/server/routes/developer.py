"""Routes that change or tell more of a server than its clients should: only where VLLM_SERVER_DEV_MODE is 1."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import tilewise
from tilewise.config import EngineConfig
from tilewise.errors import EngineDead
from tilewise.server.config import ServerConfig
from tilewise.server.context import context_of
from tilewise.server.errors import Problem
from tilewise.server.openapi.operation import Operation
from tilewise.server.protocol.answers import Reset, ServerInfo
from tilewise.server.routes.json_route import plain_router, refusal

router = plain_router()
_RESET = Operation(gives="Whether all of it is empty: what running requests use stays.", answer=Reset, statuses=(503,))
OPERATIONS = {
    "reset_prefix_cache": _RESET,
    "reset_encoder_cache": _RESET,
    "reset_mm_cache": _RESET,
    "server_info": Operation(gives="Options, variables and the machine.", answer=ServerInfo),
}


@router.post("/reset_prefix_cache")
async def reset_prefix_cache(raw: Request) -> Response:
    """Forget all prefixes that were computed; nothing is forgotten while requests run."""
    if raw.query_params.get("reset_running_requests", "false").lower() not in ("false", "0", ""):
        problem = Problem(400, "reset_running_requests is not supported: ask again when no request runs.")
        return JSONResponse(problem.body, problem.status)
    return await _reset(raw, "prefix")


@router.post("/reset_encoder_cache")
async def reset_encoder_cache(raw: Request) -> Response:
    """Forget encoded tiles, but for those that running requests use."""
    return await _reset(raw, "tiles")


@router.post("/reset_mm_cache")
async def reset_mm_cache(raw: Request) -> Response:
    """Forget pictures that have been cut."""
    context_of(raw).service.preparer.cache.clear()
    return JSONResponse({"success": True})


async def _reset(raw: Request, cache: Literal["prefix", "tiles"]) -> Response:
    service = context_of(raw).service
    try:
        return JSONResponse({"success": await service.engine.reset(cache)})
    except EngineDead as error:
        return refusal(error, service)


@router.get("/server_info")
async def server_info(raw: Request) -> Response:
    """What the server was started with, without keys."""
    context = context_of(raw)
    names = sorted(name for name in os.environ if name.startswith(("VLLM_", "TILEWISE_")) and "KEY" not in name)
    machine = {"python": platform.python_version(), "platform": platform.platform(), "cpus": os.cpu_count()}
    config = {"server": _shown(context.config), "engine": _shown(context.engine)}
    as_json = raw.query_params.get("config_format") == "json"
    found = {
        "vllm_config": json.loads(json.dumps(config, default=str)) if as_json else str(config),
        "vllm_env": {name: os.environ[name] for name in names},
        "system_env": {"tilewise": tilewise.__version__, **machine},
    }
    return JSONResponse(found)


def _shown(config: EngineConfig | ServerConfig) -> dict[str, Any]:
    """Return all options but those that hold a key or a token."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.repr}
