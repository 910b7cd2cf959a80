"""The parts of a server, put together: small files first, then the engine's process, then what stands before it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp

import tilewise
from tilewise.config import EngineConfig
from tilewise.console import set_up_logs
from tilewise.engine.counters import StatsLog
from tilewise.entrypoints.setup import media_reader
from tilewise.environment import Environment
from tilewise.errors import InvalidConfig
from tilewise.host import available_memory, cache_bytes, usable_cpus
from tilewise.ignored import LOG, Ignored
from tilewise.inputs.media.cache import MediaCache
from tilewise.inputs.media.opener import MediaOpener
from tilewise.inputs.media.tile_memory import TileFile, TileForm, TileStore
from tilewise.inputs.model_inputs import ModelInputs
from tilewise.inputs.spec import InputSpec
from tilewise.inputs.tool_text import TOOL_FORMS
from tilewise.remote.engine import EngineProcess
from tilewise.remote.replicas import memory_part, replicas_of
from tilewise.remote.supervisor import RestartRule
from tilewise.remote.wire import Build, Launch
from tilewise.sampling_params import MAX_N
from tilewise.server import information, tokenize
from tilewise.server.anthropic import routes as anthropic
from tilewise.server.chat import routes as chat
from tilewise.server.chat.call import check_template_options
from tilewise.server.completions import routes as completions
from tilewise.server.config import ServerConfig
from tilewise.server.context import Context
from tilewise.server.exchange import IGNORED_HEADER, Router
from tilewise.server.metrics import Metrics
from tilewise.server.middleware import ALWAYS_OPEN, OPEN, HttpCounter, RequestGuard
from tilewise.server.openapi import api_routes, document, pages
from tilewise.server.problems import routing_error
from tilewise.server.request_id import HEADER
from tilewise.server.responses import routes as responses
from tilewise.server.responses.store import ResponseStore, StoreLimits
from tilewise.server.served import ServedModel
from tilewise.server.service import AnswerService
from tilewise.server.tracing import TraceContext, Tracing
from tilewise.units import GIB, in_bytes

logger = logging.getLogger("tilewise")
_LEAST_SHARED = GIB
"""Bytes of tiles of requests in flight that there is memory for, though no picture is to be known again."""
_THREADS = 64
"""Threads that fetch, decode and cut media, where nothing is said."""
_FRAMES_SHARE = 8
"""The part of the memory for known pictures, one of so many, that is for frames of videos."""


async def assemble(
    engine: EngineConfig, config: ServerConfig, process: EngineProcess, build: Build | None = None
) -> Context:
    """Build a server's parts and start its engines, until they are ready. Raises the error of whatever fails."""
    started = time.perf_counter()
    # First: what is missing or cannot be read should not cost a model's loading time.
    part = memory_part(engine)
    names, limits = config.served_model_name or (engine.model,), StoreLimits.from_environment()
    tracing = None if config.otlp_traces_endpoint is None else Tracing(config.otlp_traces_endpoint, names[0])
    check_template_options(config.default_chat_template_kwargs, Ignored())
    reader = replace(media_reader(engine), detail_tiles=config.detail_tiles)
    found = await asyncio.to_thread(ModelInputs.of, engine)
    reader = replace(reader, embeddings=found.embeddings)
    found = replace(found, spec=with_parsers(found.spec, config))
    sampling = found.default_sampling(config.generation_config, config.override_generation_config)
    if sampling:
        logger.info("Default sampling options of the model: %s", sampling)
    launch = Launch.of(found, part, build)
    if workers := media_workers():
        bound = cache_bytes(engine.mm_processor_cache_gb, "pictures already cut", "mm_processor_cache_gb")
        launch = replace(launch, tiles=shared_tiles(process.tiles, bound, found.spec.tiling.tile_size))
    read = time.perf_counter()

    replicas = replicas_of(launch, RestartRule(config.max_engine_restarts, config.engine_restart_window))
    ready = await replicas.start(process)
    preparer = found.preparer(ready.resolved)
    if launch.tiles is not None:
        opener = MediaOpener(workers, TileStore(process.tiles, launch.tiles), bound, ready.resolved.resize_kernels)
        # Frames of videos are cut here, and are known again by their pixels.
        frames = MediaCache(bound // _FRAMES_SHARE)
        reader, preparer = replace(reader, opener=opener), replace(preparer, opener=opener, cache=frames)
    served = served_model(engine, config, preparer.max_model_len, sampling, found.spec)
    metrics = Metrics(served.name, served.max_model_len, len(replicas.engines))
    service = AnswerService(
        replicas, preparer, reader, config, metrics, Environment.here().media_threads or _THREADS, tracing
    )
    lines = 0 if engine.disable_log_stats else len(replicas.engines)
    stats = [StatsLog(Environment.here().log_interval, time.monotonic(), number) for number in range(lines)]
    store = None if limits is None else ResponseStore(limits)
    context = Context(service, served, stats, config, engine, found.checkpoint.folder.path, store)
    for one in replicas.engines:
        metrics.engines[one.number].describe_caches(one.resolved)
        context.became(one.number, "ready")
    replicas.watch(context)
    waited = time.perf_counter() - read - sum(ready.seconds.values())
    phases = {"files and tokenizer": read - started, "engine process": waited, **ready.seconds}
    context.phases = ", ".join(f"{name} {seconds:.2f}" for name, seconds in phases.items())
    return context


async def assemble_on_node(engine: EngineConfig, config: ServerConfig, version: str, name: str) -> Context:
    """Assemble a server in a process of Ray's, whose log lines begin with `name`.

    Raises InvalidConfig if this node has not the caller's version of Tilewise, and what `assemble` raises.
    """
    if version != tilewise.__version__:
        raise InvalidConfig(f"A node has tilewise {tilewise.__version__}, and not {version}: install the same.")
    set_up_logs(name, Environment.here().logging_level)
    process = EngineProcess()
    try:
        return await assemble(engine, config, process)
    except BaseException:
        process.kill()
        process.pipe.close()
        raise


def with_parsers(spec: InputSpec, config: ServerConfig) -> InputSpec:
    """Return `spec` with calls of tools written as `--tool-call-parser` says.

    Raises InvalidConfig for a tool or reasoning parser of another kind of model.
    """
    trained, asked = spec.template.tools, config.tool_call_parser
    harmony, reader = trained is not None and trained.name == "openai", config.reasoning_parser
    if reader is not None and (reader == "openai_gptoss") != harmony:
        fits = "openai_gptoss" if harmony else "qwen3 or deepseek_r1"
        raise InvalidConfig(f"reasoning_parser={reader} does not fit this model: take {fits}, or leave it out.")
    if trained is None or asked in (None, trained.name):
        return spec
    if trained.name != "internlm" or asked != "hermes":
        raise InvalidConfig(
            f"tool_call_parser={asked} does not fit this model, which was trained with {trained.name}: leave it out."
        )
    return replace(spec, template=spec.template.with_tools(TOOL_FORMS[asked]))


def served_model(
    engine: EngineConfig, config: ServerConfig, max_model_len: int, sampling: dict[str, Any], spec: InputSpec
) -> ServedModel:
    template = spec.template
    thinks, form = template.thinking is not None, template.tools.name if template.tools else "hermes"
    ignored = Ignored()
    thinking = check_template_options(config.default_chat_template_kwargs, ignored)
    if thinking and not thinks:
        ignored.add("chat_template_kwargs.enable_thinking", "the model was not trained to think")
    LOG.take(ignored.reasons, "default_chat_template_kwargs")
    return ServedModel(
        config=config,
        names=config.served_model_name or (engine.model,),
        root=engine.model,
        created=int(time.time()),
        max_model_len=max_model_len,
        tiling=spec.tiling,
        tokens_per_tile=spec.tokens_per_tile,
        sampling=sampling,
        max_answers=max_answers(engine.max_num_seqs * engine.data_parallel_size),
        tools=config.enable_auto_tool_choice,
        tool_form=form,
        reasoning=config.reasoning_parser is not None or form == "openai",
        thinking=thinking if thinks else None,
        thinks=thinks,
        starts=spec.start_id is not None,
        thinks_unasked=template.thinks,
        opens_thinking=bool(template.think_opening),
        priorities=engine.scheduling_policy == "priority",
    )


def shared_tiles(file: TileFile, bound: int, size: int) -> TileForm | None:
    """Give the file of tiles its form: room for known pictures of `bound` bytes, or for requests in flight alone.

    None where the system allows no such file: then pictures are opened and cut in threads.
    """
    shared = max(bound, min(_LEAST_SHARED, available_memory().free // 4))
    form = TileForm.within(shared, size)
    try:
        file.take(form)
    except OSError as error:
        logger.warning(
            "no shared memory of %s (%s): pictures are opened in this process, and are slower",
            in_bytes(form.num_bytes),
            error.strerror,
        )
        return None
    return form


def media_workers() -> int:
    """Return the number of processes that open and cut media."""
    asked = Environment.here().media_workers
    return min(usable_cpus(), 8) if asked is None else int(asked)


def max_answers(running: int) -> int:
    """Return the most answers to one prompt: VLLM_MAX_N_SEQUENCES, or as many as run at once, and at most MAX_N."""
    return min(Environment.here().max_answers or running, MAX_N)


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
        expose_headers=[IGNORED_HEADER, HEADER, "Retry-After"],
    )
    return HttpCounter(_guarded(app, config, open_paths), context.service.metrics.registry)


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
