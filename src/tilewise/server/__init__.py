"""The server: OpenAI's API over HTTP, in front of an engine in a process of its own."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tilewise.config import EngineConfig
    from tilewise.server.config import ServerConfig


def run(engine: EngineConfig, server: ServerConfig, encoding: bool = False) -> int:
    """Serve until told to stop, and return the exit status. Raises a TilewiseError if the server cannot start.

    With `encoding`, the server encodes pictures and does nothing else.
    """
    from tilewise.remote.engine import EngineProcess

    process = EngineProcess()  # loads its libraries while this one loads those of HTTP
    try:
        gc.disable()  # libraries are no garbage, and looking for it among them takes long
        import asyncio

        from tilewise.server.serve import serve  # not above: reading a configuration needs no HTTP

        gc.freeze()
        gc.enable()
        if encoding:
            from tilewise.remote.process import build_encoding
            from tilewise.server import encode, information

            routers = (encode.router, information.router)
            return asyncio.run(serve(engine, server, process, build_encoding, routers))
        return asyncio.run(serve(engine, server, process))
    finally:
        process.kill()
        process.pipe.close()
