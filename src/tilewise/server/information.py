"""Routes that tell of the server: models, health, version, metrics, load; and those that options ask for."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import platform
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

import tilewise
from tilewise.config import EngineConfig
from tilewise.console import without_credentials
from tilewise.environment import Environment
from tilewise.errors import EngineDead, UnknownModel
from tilewise.server.config import ServerConfig
from tilewise.server.context import context_of
from tilewise.server.exchange import Router, refusal
from tilewise.server.openapi import Operation
from tilewise.server.problems import Problem
from tilewise.server.served import ServedModel
from tilewise.types import Detail
from tilewise.weights.folder import optional_json

router = Router()
tokenizer_router = Router()
"""Routes that `--enable-tokenizer-info-endpoint` asks for."""
developer_router = Router()
"""Routes that change or tell more of a server than its clients should: only where VLLM_SERVER_DEV_MODE is 1."""
_METRICS = "text/plain; version=1.0.0; charset=utf-8"
_HEALTH = Operation(gives="Requests are taken.", statuses=(503,))
_PATHS = ("vocab_file", "merges_file", "name_or_path", "tokenizer_file")
"""Keys that may hold paths of files on the server, which are not shown."""


class Reset(TypedDict):
    success: bool


_RESET = Operation(gives="Whether all of it is empty: what running requests use stays.", answer=Reset, statuses=(503,))


class ServerInfo(TypedDict):
    vllm_config: str | dict[str, Any]
    vllm_env: dict[str, str]
    system_env: dict[str, Any]


class TokenizerInfo(BaseModel):
    """All that the checkpoint's tokenizer_config.json says."""

    model_config = ConfigDict(extra="allow")

    tokenizer_class: str


class CardTiling(TypedDict):
    """The rules by which pictures are cut, under the names of a checkpoint's config.json; and the tokens of a tile.

    `detail_tiles` says how many tiles a picture has at most by the `detail` of its image_url (`--detail-tiles`).
    """

    tile_size: int
    min_dynamic_patch: int
    max_dynamic_patch: int
    use_thumbnail: bool
    dynamic_image_size: bool
    tokens_per_tile: int
    detail_tiles: dict[Detail, int]


class ModelCard(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int
    permission: list[dict[str, Any]]
    tiling: CardTiling


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[ModelCard]


class Version(TypedDict):
    version: str


class Load(TypedDict):
    server_load: int


@router.on("GET", "/v1/models", Operation(gives="The names that requests may give as `model`.", answer=ModelList))
async def models(raw: Request) -> Response:
    """The model, under each of its names."""
    served = context_of(raw).served
    return JSONResponse({"object": "list", "data": [_model(name, served) for name in served.names]})


@router.on(
    "GET", "/v1/models/{model:path}", Operation(gives="The model of this name.", answer=ModelCard, statuses=(404,))
)
async def model(raw: Request) -> Response:
    """The model under one of its names, which may have slashes in it."""
    served, name = context_of(raw).served, raw.path_params["model"]
    if not name:
        return await models(raw)
    try:
        return JSONResponse(_model(served.resolve(name), served))
    except UnknownModel as error:
        return Problem.of(error).response()


def _model(name: str, served: ServedModel) -> ModelCard:
    tiling = served.tiling
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
        "tiling": {
            "tile_size": tiling.tile_size,
            "min_dynamic_patch": tiling.min_tiles,
            "max_dynamic_patch": tiling.max_tiles,
            "use_thumbnail": tiling.thumbnail,
            "dynamic_image_size": tiling.dynamic,
            "tokens_per_tile": served.tokens_per_tile,
            "detail_tiles": served.config.detail_tiles or {},
        },
    }


@router.on("GET", "/health", _HEALTH)
async def health(raw: Request) -> Response:
    """200 while requests are taken, 503 while the engine is away, or the server is about to end."""
    service = context_of(raw).service
    engine = service.engine
    if engine.state == "ready" and not service.draining:
        return Response(status_code=200)
    return Response(status_code=503, headers={"Retry-After": str(engine.retry_after)})


@router.on("GET POST", "/ping", _HEALTH)
async def ping(raw: Request) -> Response:
    """An answer as of /health, where SageMaker asks for it."""
    return await health(raw)


@router.on("GET", "/version", Operation(gives="The version.", answer=Version))
async def version(_: Request) -> Response:
    """The version of Tilewise."""
    return JSONResponse({"version": tilewise.__version__})


@router.on("GET", "/metrics", Operation(gives="Prometheus's text format.", answer="text/plain"))
async def metrics(raw: Request) -> Response:
    """Metrics for Prometheus, under vLLM's names."""
    context = context_of(raw)
    context.service.metrics.media(*context.service.preparer.media_use)
    for of_engine, engine in zip(context.service.metrics.engines, context.service.engine.engines, strict=True):
        of_engine.silent(engine.silent_seconds)
    return Response(context.service.metrics.render(), media_type=_METRICS)


@router.on("GET", "/load", Operation(gives="Their number.", answer=Load))
async def load(raw: Request) -> Response:
    """Requests that are being answered."""
    return JSONResponse({"server_load": context_of(raw).service.in_flight})


@tokenizer_router.on("GET", "/tokenizer_info", Operation(gives="The tokenizer's configuration.", answer=TokenizerInfo))
async def tokenizer_info(raw: Request) -> Response:
    """The checkpoint's account of its tokenizer, and of the template that it names for chats."""
    return JSONResponse(await asyncio.to_thread(_tokenizer_config, context_of(raw).checkpoint))


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    found = {key: _plain(value) for key, value in optional_json(folder / "tokenizer_config.json").items()}
    template = folder / "chat_template.jinja"
    if "chat_template" not in found and template.is_file():
        found["chat_template"] = template.read_text(encoding="utf-8")
    found.setdefault("tokenizer_class", "PreTrainedTokenizerFast")  # transformers' own for a tokenizer.json alone
    return {key: value for key, value in found.items() if key not in _PATHS}


def _plain(value: Any) -> Any:
    """Return a special token's text, and any other value as it is."""
    return value["content"] if isinstance(value, dict) and value.get("__type") == "AddedToken" else value


@developer_router.on("POST", "/reset_prefix_cache", _RESET)
async def reset_prefix_cache(raw: Request) -> Response:
    """Forget all prefixes that were computed; nothing is forgotten while requests run."""
    if raw.query_params.get("reset_running_requests", "false").lower() not in ("false", "0", ""):
        return Problem(400, "reset_running_requests is not supported: ask again when no request runs.").response()
    return await _reset(raw, "prefix")


@developer_router.on("POST", "/reset_encoder_cache", _RESET)
async def reset_encoder_cache(raw: Request) -> Response:
    """Forget encoded tiles, but for those that running requests use."""
    return await _reset(raw, "tiles")


@developer_router.on("POST", "/reset_mm_cache", _RESET)
async def reset_mm_cache(raw: Request) -> Response:
    """Forget pictures that have been cut."""
    context_of(raw).service.preparer.forget_media()
    return JSONResponse({"success": True})


async def _reset(raw: Request, cache: Literal["prefix", "tiles"]) -> Response:
    service = context_of(raw).service
    try:
        return JSONResponse({"success": await service.engine.reset(cache)})
    except EngineDead as error:
        return refusal(error, service)


@developer_router.on("GET", "/server_info", Operation(gives="Options, variables and the machine.", answer=ServerInfo))
async def server_info(raw: Request) -> Response:
    """Options and variables that the server was started with, without keys."""
    context = context_of(raw)
    machine = {"python": platform.python_version(), "platform": platform.platform(), "cpus": os.cpu_count()}
    config = {"server": _shown(context.config), "engine": _shown(context.engine)}
    as_json = raw.query_params.get("config_format") == "json"
    found: ServerInfo = {
        "vllm_config": json.loads(json.dumps(config, default=str)) if as_json else str(config),
        "vllm_env": Environment.here().shown,
        "system_env": {"tilewise": tilewise.__version__, **machine},
    }
    return JSONResponse(found)


def _shown(config: EngineConfig | ServerConfig) -> dict[str, Any]:
    """Return all options but those that hold a key or a token; passwords in addresses are left out."""
    found = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.repr}
    return {name: without_credentials(value) if isinstance(value, str) else value for name, value in found.items()}
