"""The server's application over an engine in a process of its own, with no door to the outside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import ASGIApp

from tilewise.config import EngineConfig
from tilewise.errors import EngineDead
from tilewise.remote.child import EngineProcess
from tilewise.remote.wire import Build
from tilewise.server.app import create_app
from tilewise.server.assemble import Assembly, assemble
from tilewise.server.config import ServerConfig
from tilewise.server.fields import TABLES

_LOOK = 0.05  # seconds between looks at whether the engine is back
_PATIENCE = 1800.0  # seconds in which an engine has to come back


class Desk:
    """Where lines are asked."""

    def __init__(self, parts: Assembly, app: ASGIApp) -> None:
        self._parts, self.app = parts, app

    async def until_ready(self) -> None:
        """Raises EngineDead if the engine is given up, or takes forever to come back."""
        try:
            async with asyncio.timeout(_PATIENCE):
                while self._parts.supervisor.state != "ready":
                    if self._parts.gave_up:
                        raise EngineDead("The engine died too often and is given up; the log says how it ended.")
                    await asyncio.sleep(_LOOK)
        except TimeoutError:
            raise EngineDead(f"The engine has not come back within {_PATIENCE:.0f} seconds.") from None


@asynccontextmanager
async def open_desk(
    engine: EngineConfig, server: ServerConfig, process: EngineProcess, build: Build | None = None
) -> AsyncIterator[Desk]:
    """Raises what hinders the engine's start."""
    parts = await assemble(engine, server, process, build)
    try:
        yield Desk(parts, create_app(parts, server))
    finally:
        parts.service.close()
        await parts.supervisor.close()


def asked_paths() -> list[str]:
    """Routes that take a body and answer it."""
    return list(TABLES)
