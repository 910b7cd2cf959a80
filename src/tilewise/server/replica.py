"""A server that is a replica of a deployment on Ray Serve: its application, without a socket of its own."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import time
from typing import Any

from starlette.types import ASGIApp

import tilewise
from tilewise.config import EngineConfig
from tilewise.errors import EngineDead
from tilewise.server.assemble import assemble_on_node, create_app
from tilewise.server.config import ServerConfig
from tilewise.server.context import Context

logger = logging.getLogger("tilewise")

_LAST_WORDS = 1.0
"""Seconds in which clients are told that the engine is gone, before the replica goes too."""


class Replica:
    """One engine with the application before it.

    A replica without an engine would be the least busy of all, and get every request. So it ends with its engine,
    which Serve notices at once, and replaces it.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, engine: EngineConfig, server: ServerConfig, version: str
    ) -> None:
        started = time.perf_counter()
        self._context = await assemble_on_node(engine, server, version, "Replica")
        self._context.on_give_up(self._end)
        gc.freeze()  # libraries are no garbage, and looking for it among them takes long
        logger.info("Start-up took %.2f seconds: %s", time.perf_counter() - started, self._context.phases)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the application; Serve calls this method, by this name, once the constructor is done."""
        return create_app(self._context)

    async def check_health(self) -> None:
        """Raise EngineDead where there is no engine, and none is on its way. Serve asks every few seconds."""
        if self._context.gave_up:
            raise EngineDead("The engine was given up.")

    def _end(self) -> None:
        logger.error("This replica ends with its engine; Serve starts another one.")
        asyncio.get_running_loop().call_later(_LAST_WORDS, os._exit, 1)

    async def __del__(self) -> None:
        """Close the engines; Serve awaits this when a replica is no longer wanted and its requests have ended."""
        context: Context | None = getattr(self, "_context", None)
        if context is not None:
            await context.service.engine.close()


def deployment(engine: EngineConfig, server: ServerConfig, replicas: int | tuple[int, int], cpus: float) -> Any:
    """Return an application of Serve, with a number of replicas, or as many as its load needs between two numbers.

    `cpus` are the CPUs of each replica, and the threads of its engine as well.
    """
    from ray import serve  # an extra

    # Requests that a server would let wait, wait in Serve, before all replicas, unless the server has to count them.
    counts = server.max_num_queued_reqs is not None or server.max_num_queued_tokens is not None
    options: dict[str, Any] = {
        "name": "tilewise",
        "ray_actor_options": {"num_cpus": cpus},
        "max_ongoing_requests": 1_000_000 if counts else 2 * engine.max_num_seqs,
        "health_check_period_s": 2,
        "graceful_shutdown_timeout_s": server.shutdown_timeout + 10,
    }
    if isinstance(replicas, int):
        options["num_replicas"] = replicas
    else:
        options["autoscaling_config"] = {
            "min_replicas": replicas[0],
            "max_replicas": replicas[1],
            "target_ongoing_requests": max(1, engine.max_num_seqs // 2),
        }
    return serve.deployment(serve.ingress()(Replica)).options(**options).bind(engine, server, tilewise.__version__)
