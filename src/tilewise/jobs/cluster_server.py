"""ClusterServer: asks engines on the nodes of a Ray cluster, each an actor with the server's application."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from starlette.types import Receive, Scope, Send

import tilewise
from tilewise.cluster import alive_nodes, attach
from tilewise.config import EngineConfig
from tilewise.errors import EngineDead, InvalidConfig, TilewiseError
from tilewise.jobs.local_server import LocalServer
from tilewise.jobs.task import AsgiReply, post
from tilewise.logs import set_up_logs
from tilewise.remote.engine_process import EngineProcess
from tilewise.server.app import create_app
from tilewise.server.assemble import assemble
from tilewise.server.config import ServerConfig

logger = logging.getLogger("tilewise")

_AT_ONCE = 10_000
"""Most calls that an actor takes at the same time; how many there are, the run decides."""
_PAUSE = 1.0
"""Seconds before an actor that died is made again."""


class EngineActor:
    """A Ray actor with an engine's process and the server's application; it ends when the engine is given up."""

    async def begin(self, engine: EngineConfig, server: ServerConfig, version: str) -> str:
        """Start the engine, and return the address of its node. Raises what hinders the start."""
        if version != tilewise.__version__:
            raise InvalidConfig(f"A node has tilewise {tilewise.__version__}, and not {version}: install the same.")
        set_up_logs("Batch", os.environ.get("VLLM_LOGGING_LEVEL", "INFO"))
        process = EngineProcess()
        try:
            parts = await assemble(engine, server, process)
        except BaseException:
            process.kill()
            process.pipe.close()
            raise
        parts.on_give_up(lambda: os._exit(1))
        self._local = LocalServer(parts, create_app(parts))
        return str(ray.util.get_node_ip_address())

    async def ask(self, path: str, body: bytes, request_id: str) -> AsgiReply:
        await self._local.until_ready()
        return await post(self._local.app, path, body, request_id)

    async def stay(self) -> None:
        """Wait forever: a caller that waits for this learns when the actor dies."""
        await asyncio.Event().wait()


@dataclass(eq=False)
class ClusterEngine:
    """An engine that takes requests."""

    actor: Any
    asked: int = 0
    """Requests in flight."""


class ClusterServer:
    """The application of all engines: a request goes to the one with the fewest requests in flight."""

    def __init__(self, engine: EngineConfig, server: ServerConfig, engines: int, cpus: float) -> None:
        self.engines = engines
        self._engine, self._server, self._cpus = engine, server, cpus
        self._members: set[ClusterEngine] = set()
        self._changed = asyncio.Event()
        self._error: TilewiseError | None = None
        self._deaths: deque[float] = deque()
        self._most_deaths = server.max_engine_restarts
        self.app = self

    async def until_ready(self) -> None:
        """Wait until there is an engine. Raises the reason if there will be none."""
        while not self._members or self._error:
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as an ASGI application does."""
        message = await receive()
        request_id = dict(scope["headers"])[b"x-request-id"].decode()
        reply = await self._ask(scope["path"], message["body"], request_id)
        await send({"type": "http.response.start", "status": reply.status, "headers": list(reply.headers.items())})
        await send({"type": "http.response.body", "body": bytes(reply.body)})

    async def _ask(self, path: str, body: bytes, request_id: str) -> AsgiReply:
        member = min(self._members, key=lambda one: one.asked, default=None)
        if member is None:
            return _lost("There is no engine.")
        member.asked += 1
        try:
            reply: AsgiReply = await member.actor.ask.remote(path, body, request_id)
            return reply
        except RayError as error:
            return _lost(f"The engine that was asked is gone ({type(error).__name__}).")
        finally:
            member.asked -= 1

    async def keep(self) -> None:
        """Keep one engine alive: start it again when it dies. Returns once any cannot be started, or died too often."""
        while self._error is None:
            actor = (
                ray.remote(EngineActor)
                .options(num_cpus=self._cpus, max_concurrency=_AT_ONCE, max_restarts=0, scheduling_strategy="SPREAD")
                .remote()
            )
            member = ClusterEngine(actor)
            try:
                where = await actor.begin.remote(self._engine, self._server, tilewise.__version__)
                logger.info("An engine on %s is ready", where)
                self._members.add(member)
                self._changed.set()
                await actor.stay.remote()
            except RayTaskError as error:
                self._fail(error.cause if isinstance(error.cause, TilewiseError) else EngineDead(str(error)))
            except RayError as error:
                logger.warning("An engine of the cluster is lost (%s); another one is started.", type(error).__name__)
                self._count_death()
            finally:
                self._members.discard(member)
                ray.kill(actor)
            await asyncio.sleep(_PAUSE)

    def _count_death(self) -> None:
        now = asyncio.get_running_loop().time()
        self._deaths.append(now)
        while self._deaths[0] < now - self._server.engine_restart_window:
            self._deaths.popleft()
        if len(self._deaths) > self._most_deaths:
            self._fail(
                EngineDead("Engines of the cluster died too often: raise --max-engine-restarts, or see Ray's log.")
            )

    def _fail(self, error: TilewiseError) -> None:
        self._error = self._error or error
        self._changed.set()


def _lost(why: str) -> AsgiReply:
    """Return the reply of a server whose engine is away."""
    return AsgiReply(503, {b"retry-after": b"1"}, bytearray(f'{{"error":{{"message":"{why}","code":503}}}}', "utf-8"))


@asynccontextmanager
async def open_cluster_server(
    engine: EngineConfig, server: ServerConfig, replicas: int | None, cpus: float
) -> AsyncIterator[ClusterServer]:
    """Start `replicas` engines (None = one a node) in the cluster of RAY_ADDRESS. Raises what hinders the start."""
    attached = attach("run-batch --ray")
    asked = ClusterServer(engine, server, replicas or len(alive_nodes()), cpus)
    keeping = [asyncio.create_task(asked.keep()) for _ in range(asked.engines)]
    try:
        await asked.until_ready()
        yield asked
    finally:
        for task in keeping:
            task.cancel()
        await asyncio.gather(*keeping, return_exceptions=True)
        if attached != "before":
            ray.shutdown()
