"""LocalServer: the server's application without a socket, over an engine in a process of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from prometheus_client import start_http_server
from starlette.types import ASGIApp

from tilewise.config import EngineConfig
from tilewise.errors import EngineDead, InvalidConfig
from tilewise.remote.engine_process import EngineProcess
from tilewise.remote.wire import Build
from tilewise.server.app import create_app
from tilewise.server.assemble import assemble
from tilewise.server.bodies import BODIES
from tilewise.server.config import ServerConfig
from tilewise.server.context import Context

logger = logging.getLogger("tilewise")
_LOOK = 0.05  # seconds between checks that the engine is back
_PATIENCE = 1800.0  # seconds in which an engine has to come back


class LocalServer:
    """The server's application over one engine, which this process started."""

    engines = 1

    def __init__(self, parts: Context, app: ASGIApp) -> None:
        self._parts, self.app = parts, app

    async def until_ready(self) -> None:
        """Wait until the engine is ready. Raises EngineDead if it is given up, or takes forever to come back."""
        try:
            async with asyncio.timeout(_PATIENCE):
                while self._parts.replicas.state != "ready":
                    if self._parts.gave_up:
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
            yield LocalServer(parts, create_app(parts))
    finally:
        parts.service.close()
        await parts.replicas.close()


@contextmanager
def _shown(parts: Context, address: tuple[str, int] | None) -> Iterator[None]:
    if address is None:
        yield
        return
    host, port = address
    try:
        listener, thread = start_http_server(port, host, parts.metrics.registry)
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


def asked_paths() -> list[str]:
    """Return the routes that a line may ask: those that take a body and answer it."""
    return [body.route for body in BODIES]
