"""A server is run from two configurations: it listens, loads the model, answers, and ends in order."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import stat
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tilewise.config import EngineConfig
from tilewise.console import http_log_config
from tilewise.environment import Environment
from tilewise.errors import EngineDead, InvalidConfig
from tilewise.host import allow_many_open_files
from tilewise.remote.engine import EngineProcess
from tilewise.remote.wire import Build
from tilewise.server.assemble import UI_PATH, assemble, create_app
from tilewise.server.config import ServerConfig
from tilewise.server.context import Context
from tilewise.server.exchange import Router


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which closes a connection whose client is too long in sending what it owes.

    That is a head, or the rest of a body that is refused; sending a little of it now and then does not help. Bodies
    that are read have a limit of their own (`BodyReceiver`).
    """

    patience = 30.0
    """Seconds that a client may owe something."""
    _owing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if not self._owes():
            self._stop()
        elif self._owing is None:
            self._owing = self.loop.call_later(self.patience, self.transport.close)

    def _owes(self) -> bool:
        # h11's states of the client: IDLE = no whole head has come; SEND_BODY while our answer is DONE = the rest of a
        # refused body is still to come.
        theirs = self.conn.their_state
        return theirs is h11.IDLE or (theirs is h11.SEND_BODY and self.conn.our_state is h11.DONE)

    def _stop(self) -> None:
        if self._owing is not None:
            self._owing.cancel()
            self._owing = None


logger = logging.getLogger("tilewise")
_WAITING_CONNECTIONS = 4096
"""Connections that wait in the kernel until the event loop accepts them; Linux allows no more by default."""
_ABORTED = 2.0  # seconds that streams have to say that they were aborted


async def serve(
    engine: EngineConfig,
    config: ServerConfig,
    process: EngineProcess,
    build: Build | None = None,
    routers: Sequence[Router] | None = None,
) -> int:
    """Serve until told to stop, with an engine in a process that has begun, and return the exit status.

    `build` makes another engine than the model's; `routers` have the routes, None = those that the options ask for.
    Raises a TilewiseError if the server cannot start.
    """
    started = time.perf_counter()
    allow_many_open_files()
    Environment.here().check()
    listener = listen(config)  # first: a port that is taken should not cost a model's loading time
    if config.port == 0 and config.uds is None:
        config = replace(config, port=listener.getsockname()[1])
    try:
        context = await assemble(engine, config, process, build)
        logger.info("Start-up took %.2f seconds: %s", time.perf_counter() - started, context.phases)
        if config.ui:
            logger.info("The web chat is at %s", config.url + UI_PATH)
        admit(listener, config)
        server = Server(uvicorn_config(context, routers), context)
        await asyncio.sleep(0)  # Ctrl-C meanwhile ends it here, and not within uvicorn, which would log a trace
        await server.serve(sockets=[listener])
        await context.service.engine.close()
        logger.info("Shutdown complete")
        return 0 if server.started and not context.gave_up else 1
    finally:
        listener.close()
        if config.uds is not None:
            Path(config.uds).unlink(missing_ok=True)


def listen(config: ServerConfig) -> socket.socket:
    """Return a bound socket; nobody is let in before the model is loaded. Raises InvalidConfig."""
    host = config.host or "0.0.0.0"
    family = socket.AF_UNIX if config.uds else socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named, since asyncio sends small chunks at once (TCP_NODELAY) only where it is.
    made = socket.socket(family, socket.SOCK_STREAM, 0 if config.uds else socket.IPPROTO_TCP)
    try:
        if config.uds is not None:
            _remove_stale(Path(config.uds))
            made.bind(config.uds)
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((host.strip("[]"), config.port))
    except OSError as error:
        made.close()
        raise _not_ours(config, error) from None
    made.set_inheritable(False)
    return made


def admit(listener: socket.socket, config: ServerConfig) -> None:
    """Let clients connect. Raises InvalidConfig where another server, which was bound to the same port while both were
    loading, was first.
    """
    try:
        listener.listen(_WAITING_CONNECTIONS)
    except OSError as error:
        raise _not_ours(config, error) from None


def _not_ours(config: ServerConfig, error: OSError) -> InvalidConfig:
    if config.uds is not None:
        return InvalidConfig(f"--uds {config.uds} cannot be listened at ({error.strerror}): choose another path.")
    where = f"{config.host or '0.0.0.0'}:{config.port}"
    return InvalidConfig(f"{where} cannot be listened at ({error.strerror}): choose another port or host.")


def _remove_stale(path: Path) -> None:
    """Delete a socket file that a server left behind; one that is answered stays, and so does any other file."""
    if not (path.exists() and stat.S_ISSOCK(path.stat().st_mode)):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, suppress(OSError):
        probe.connect(str(path))
        return
    path.unlink()


def uvicorn_config(context: Context, routers: Sequence[Router] | None) -> uvicorn.Config:
    config, access_log = context.config, not context.config.disable_uvicorn_access_log
    return uvicorn.Config(
        create_app(context, routers),
        host=config.host or "0.0.0.0",
        port=config.port,
        uds=config.uds,
        http=PatientProtocol,  # h11, whose limit of headers is one that can be set
        h11_max_incomplete_event_size=config.h11_max_incomplete_event_size,
        ws="none",
        lifespan="on",
        backlog=_WAITING_CONNECTIONS,
        timeout_keep_alive=config.timeout_keep_alive,
        timeout_graceful_shutdown=1,  # answers have ended by then
        server_header=False,
        access_log=access_log,
        log_config=http_log_config(
            "APIServer", config.uvicorn_log_level, access_log, config.disable_access_log_for_endpoints
        ),
        ssl_keyfile=config.ssl_keyfile,
        ssl_certfile=config.ssl_certfile,
        ssl_ca_certs=config.ssl_ca_certs,
        ssl_cert_reqs=config.ssl_cert_reqs,
        ssl_ciphers=config.ssl_ciphers or "DEFAULT",
    )


class Server(uvicorn.Server):
    """uvicorn's server, which lets running requests finish first, and ends when the engine has been given up."""

    def __init__(self, config: uvicorn.Config, context: Context) -> None:
        super().__init__(config)
        self._context, self._patience = context, context.config.shutdown_timeout

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._log_started_message(sockets or [])
        self._context.on_give_up(self._end)

    def _end(self) -> None:
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; being told a second time, wait no longer for requests in flight."""
        if self.should_exit:
            logger.info("Shutdown was asked for again: requests in flight are not waited for")
            self.force_exit = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logger.info("Shutdown initiated (timeout=%g)", self._patience)
        service = self._context.service
        service.draining = True
        if service.in_flight and self._patience:
            logger.info("Draining %d in-flight requests (timeout=%gs)", service.in_flight, self._patience)
            await self._until_idle(self._patience)
        if service.in_flight:
            logger.info("Aborting %d requests", service.in_flight)
            self._context.service.engine.end_streams(
                EngineDead("The server is shutting down: send the request to another one.")
            )
            await self._until_idle(_ABORTED)
        await super().shutdown(sockets)
        if self.force_exit:  # then uvicorn leaves the end of the app to the loop, which would break it off with a trace
            await self.lifespan.shutdown()

    async def _until_idle(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._context.service.in_flight and not self.force_exit:
                    await asyncio.sleep(0.02)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle signals as uvicorn does, without raising them again: a server that ended as told has not failed."""
        loop, signals = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)
