"""The server that lines are sent to: its application over an engine of this machine, or over those of a Ray cluster."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
from prometheus_client import start_http_server
from starlette.types import ASGIApp

import tilewise
from tilewise.config import EngineConfig
from tilewise.errors import EngineDead, InvalidConfig, TilewiseError
from tilewise.ray_cluster import alive_nodes, attach
from tilewise.remote.engine import EngineProcess
from tilewise.remote.supervisor import RestartRule
from tilewise.remote.wire import Build
from tilewise.server.assemble import assemble, assemble_on_node, create_app
from tilewise.server.config import ServerConfig
from tilewise.server.context import Context

logger = logging.getLogger("tilewise")
_LOOK = 0.05  # seconds between checks that the engine is back
_PATIENCE = 1800.0  # seconds in which an engine has to come back


async def post(app: ASGIApp, path: str, body: bytes, request_id: str) -> httpx.Response:
    """Send a request to an application of this process, and return its whole reply. Cancelling ends the request."""
    headers = {"content-type": "application/json", "x-request-id": request_id}
    request = httpx.Request("POST", f"http://tilewise{path}", content=body, headers=headers)
    try:
        reply = await httpx.ASGITransport(app).handle_async_request(request)
        await reply.aread()
    except Exception:  # of whatever kind: a request that fails must not end the run
        logger.exception("A request failed")
        return httpx.Response(500)
    return reply


class LocalServer:
    """The server's application over one engine, which this process started."""

    engines = 1

    def __init__(self, parts: Context) -> None:
        self.parts, self._app = parts, create_app(parts)

    async def post(self, path: str, body: bytes, request_id: str) -> httpx.Response:
        return await post(self._app, path, body, request_id)

    async def until_ready(self) -> None:
        """Wait until the engine is ready. Raises EngineDead if it is given up, or takes forever to come back."""
        try:
            async with asyncio.timeout(_PATIENCE):
                while self.parts.service.engine.state != "ready":
                    if self.parts.gave_up:
                        raise EngineDead("The engine died too often and is given up; the log says how it ended.")
                    await asyncio.sleep(_LOOK)
        except TimeoutError:
            raise EngineDead(f"The engine has not come back within {_PATIENCE:.0f} seconds.") from None


@asynccontextmanager
async def open_local_server(
    engine: EngineConfig,
    server: ServerConfig,
    process: EngineProcess,
    build: Build | None = None,
    metrics: tuple[str, int] | None = None,
) -> AsyncIterator[LocalServer]:
    """Start an engine in `process`; Prometheus may read at the address `metrics`. Raises what hinders the start."""
    parts = await assemble(engine, server, process, build)
    try:
        with _shown(parts, metrics):
            yield LocalServer(parts)
    finally:
        parts.service.close()
        await parts.service.engine.close()


@contextmanager
def _shown(parts: Context, address: tuple[str, int] | None) -> Iterator[None]:
    if address is None:
        yield
        return
    host, port = address
    try:
        listener, thread = start_http_server(port, host, parts.service.metrics.registry)
    except OSError as error:
        raise InvalidConfig(
            f"{host}:{port} cannot be listened at for metrics ({error.strerror}): choose another port or url."
        ) from None
    logger.info("Metrics are at http://%s:%d/metrics", host, listener.server_port)
    try:
        yield
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


class EngineActor:
    """An engine's process with the server's application, on a node of a cluster; it ends when the engine is given up.

    It is a Ray actor, whose methods are called by `RayEngine` from another process.
    """

    async def node(self) -> str:
        import ray

        return str(ray.util.get_node_ip_address())

    async def start(self, engine: EngineConfig, server: ServerConfig, version: str) -> None:
        """Start the engine. Raises what hinders that."""
        parts = await assemble_on_node(engine, server, version, "Batch")
        parts.on_give_up(lambda: os._exit(1))
        self.local = LocalServer(parts)

    async def post(self, path: str, body: bytes, request_id: str) -> httpx.Response:
        await self.local.until_ready()
        return await self.local.post(path, body, request_id)

    async def stay(self) -> None:
        """Wait forever: a caller that waits for this learns when the actor dies."""
        await asyncio.Event().wait()


class EngineLost(Exception):
    """An engine of the cluster is gone, with its process or its node; the text is Ray's name for how."""


_AT_ONCE = 10_000
"""Most calls that an actor takes at the same time; how many there are, the run decides."""


class RayEngine:
    """An EngineActor as its caller has it, on whichever node has room. All methods but `kill` may raise EngineLost."""

    def __init__(self, cpus: float) -> None:
        import ray

        options = {"max_concurrency": _AT_ONCE, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        self._actor = ray.remote(EngineActor).options(num_cpus=cpus, **options).remote()

    async def node(self) -> str:
        """Return the address of the engine's node, once it has one."""
        return str(await self._call("node"))

    async def start(self, engine: EngineConfig, server: ServerConfig, version: str) -> None:
        """Start the engine. Raises TilewiseError if it cannot start."""
        await self._call("start", engine, server, version)

    async def post(self, path: str, body: bytes, request_id: str) -> httpx.Response:
        reply: httpx.Response = await self._call("post", path, body, request_id)
        return reply

    async def stay(self) -> None:
        """Wait until the engine is lost."""
        await self._call("stay")

    def kill(self) -> None:
        import ray

        ray.kill(self._actor)

    async def _call(self, method: str, *arguments: Any) -> Any:
        from ray.exceptions import RayError, RayTaskError

        try:
            return await getattr(self._actor, method).remote(*arguments)
        except RayTaskError as error:  # raised by the method itself
            raise error.cause if isinstance(error.cause, TilewiseError) else EngineDead(str(error)) from None
        except RayError as error:
            raise EngineLost(type(error).__name__) from None


_PAUSE = 1.0
"""Seconds before an engine that was lost is made again."""
_TOO_OFTEN = "Engines of the cluster died too often: raise --max-engine-restarts, or see Ray's log."


class ClusterServer:
    """The server of all engines: a request goes to the one with the fewest requests in flight.

    An engine that is lost is made again. One that cannot start is left out, as the others may do without it.
    """

    def __init__(self, make: Callable[[], RayEngine], engines: int, engine: EngineConfig, server: ServerConfig) -> None:
        """`make` gives the next of the `engines`, which are all started from the same two configs."""
        self.engines, self._make, self._engine, self._server = engines, make, engine, server
        self._in_flight: dict[RayEngine, int] = {}
        """Requests in flight of each engine that takes some."""
        self._expected = engines
        """Engines that are ready, or may become so."""
        self._changed = asyncio.Event()
        self._error: TilewiseError | None = None
        self._rule, self._deaths = RestartRule(server.max_engine_restarts, server.engine_restart_window), deque[float]()

    async def until_ready(self) -> None:
        """Wait until there is an engine. Raises the reason if there will be none."""
        while not self._in_flight or self._error:
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()

    async def post(self, path: str, body: bytes, request_id: str) -> httpx.Response:
        engine = min(self._in_flight, key=self._in_flight.__getitem__, default=None)
        if engine is None:
            return _lost("There is no engine.")
        self._in_flight[engine] += 1
        try:
            return await engine.post(path, body, request_id)
        except EngineLost as error:
            return _lost(f"The engine that was asked is gone ({error}).")
        except EngineDead as error:
            return _lost(str(error))
        finally:
            if engine in self._in_flight:
                self._in_flight[engine] -= 1

    async def keep(self) -> None:
        """Keep one engine alive. Returns once it cannot be started, or if engines died too often."""
        while self._error is None:
            engine, where = self._make(), "a node"
            try:
                where = await engine.node()
                await engine.start(self._engine, self._server, tilewise.__version__)
                logger.info("An engine on %s is ready", where)
                self._in_flight[engine] = 0
                self._changed.set()
                await engine.stay()
            except EngineLost as error:
                logger.warning("An engine of the cluster is lost (%s); another one is started.", error)
                if self._rule.is_broken_by(self._deaths, time.monotonic()):
                    self._fail(EngineDead(_TOO_OFTEN))
            except TilewiseError as error:
                self._leave_out(where, error)
                return
            finally:
                self._in_flight.pop(engine, None)
                engine.kill()
            await asyncio.sleep(_PAUSE)

    def _leave_out(self, where: str, error: TilewiseError) -> None:
        """Go on without an engine that cannot start; the error of the last one ends the run."""
        self._expected -= 1
        if self._expected:
            logger.error("An engine on %s cannot start, and is left out: %s", where, error)
        else:
            self._fail(error)

    def _fail(self, error: TilewiseError) -> None:
        self._error = self._error or error
        self._changed.set()


def _lost(why: str) -> httpx.Response:
    """Return the reply of a server whose engine is away."""
    return httpx.Response(503, headers={"retry-after": "1"}, json={"error": {"message": why, "code": 503}})


@asynccontextmanager
async def open_cluster_server(
    engine: EngineConfig, server: ServerConfig, replicas: int | None, cpus: float
) -> AsyncIterator[ClusterServer]:
    """Start `replicas` engines (None = one a node) in the cluster of RAY_ADDRESS. Raises what hinders all of them."""
    attached = attach("run-batch --ray")
    opened = ClusterServer(lambda: RayEngine(cpus), replicas or len(alive_nodes()), engine, server)
    keeping = [asyncio.create_task(opened.keep()) for _ in range(opened.engines)]
    try:
        await opened.until_ready()
        yield opened
    finally:
        for task in keeping:
            task.cancel()
        await asyncio.gather(*keeping, return_exceptions=True)
        if attached != "before":
            import ray

            ray.shutdown()
