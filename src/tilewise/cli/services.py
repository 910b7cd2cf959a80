"""`tilewise start [MODEL]`, `ps`, `logs`, `stop` and `archive`: servers in the background, by name."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from tilewise.cli.flags import grps
from tilewise.cli.flags.flag import BadUsage
from tilewise.cli.flags.parse import CommandLine
from tilewise.cli.flags.settings import make_settings, serve_flags, values_of_line
from tilewise.cli.flags.verb import Verb, table
from tilewise.errors import InvalidConfig, InvalidRequest
from tilewise.option import option, word
from tilewise.server.config import ServerConfig
from tilewise.services import (
    BackgroundService,
    ServiceFolder,
    ServiceProblem,
    ServiceSpec,
    end_process,
    launch,
    state_of,
)


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    GROUP: ClassVar = "service"
    name: str | None = option(None, "name of the service (default: that of the model)")
    timeout: float = option(600.0, "seconds to wait for an answer; then the service is stopped")
    server_conf: str | None = option(None, "grps's server.yml")
    inference_conf: str | None = option(None, "grps's inference.yml; the model is the one of its tokenizer_path")
    mpi_np: int | None = option(None, "as --tensor-parallel-size")
    no_logging: bool = option(False, "refused: the log is how a service that fails is understood")


@dataclass(frozen=True)
class StartOrder:
    """A command line of `start` that was read: `values` are those of the flags of `serve`, `lines` are to be shown."""

    name: str | None
    timeout: float
    values: dict[str, Any]
    lines: list[str]

    @classmethod
    def of(cls, line: CommandLine) -> StartOrder:
        """Read a line. It wins over the file of --config, and that over other YAML files, grps's among them."""
        options = line.take(StartOptions)
        if options.no_logging:
            raise BadUsage("--no-logging: a service is never without its log, which is how a failure is understood.")
        if not 0 < options.timeout < float("inf"):
            raise BadUsage(f"--timeout must be above 0, in seconds, got {options.timeout:g}.")
        archived = _take(line, (".mar",))
        found = grps.GrpsFlags(dict(grps.DEFAULTS) if archived else {})
        for path in filter(None, [*_take(line, (".yml", ".yaml")), options.server_conf, options.inference_conf]):
            imported = grps.read_server_yml(path, serve_flags())
            found.values |= imported.values
            found.lines += imported.lines
        found.lines += [f"{path}: no archive is needed, the checkpoint is read as it is." for path in archived]
        if options.mpi_np is not None:
            found.values["tensor_parallel_size"] = options.mpi_np
        name = options.name or (grps.NAME if archived else None)
        return cls(name, options.timeout, found.values | values_of_line(line), found.lines)


def _take(line: CommandLine, endings: tuple[str, ...]) -> list[str]:
    """Take out of a line the words that end so, which are files and no model, and return them."""
    taken = [word for word in line.positional if word.endswith(endings)]
    line.positional[:] = [word for word in line.positional if word not in taken]
    return taken


def run_start(line: CommandLine) -> int:
    return start(StartOrder.of(line), [sys.executable, "-m", "tilewise", "serve", "--config"])


def start(order: StartOrder, command: Sequence[str]) -> int:
    """Start a service, and return the exit code. `command` is given the file of flags as its last word."""
    settings = make_settings(order.values, os.environ)
    for line in (*order.lines, *settings.lines, *settings.warnings):
        _tell(line)
    name = order.name or settings.name
    check_address(settings.server)
    folder = ServiceFolder.of(os.environ)
    wanted = ServiceSpec(
        name,
        [*command, str(folder.file(name, "yml"))],
        settings.engine.model,
        settings.server.url,
        settings.server.uds,
        as_yaml(order.values),
    )
    _tell(f"Starting {name}; its log: {folder.file(name, 'log')}")
    service = launch(folder, wanted, order.timeout, _tell)
    print(f"{name} answers at {service.where} (pid {service.pid}). `tilewise logs {name}`, `tilewise stop {name}`.")
    return 0


def check_address(server: ServerConfig) -> None:
    """Raise InvalidConfig unless a service can listen there, and can be asked how it is."""
    if server.ssl_cert_reqs == 2:
        raise InvalidConfig(
            "ssl_cert_reqs=2: a server that wants certificates of clients cannot be asked how it is. Use "
            "`tilewise serve` under a supervisor of your own."
        )
    if server.uds is not None:
        return
    if server.port == 0:
        raise InvalidConfig("port=0: a service needs a port that is known. Name one that is free.")
    family = socket.AF_INET6 if ":" in (server.host or "") else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((server.host or "0.0.0.0", server.port))
        except OSError as error:
            raise InvalidConfig(
                f"Cannot listen at {server.host or 'all interfaces'}, port {server.port}: {error.strerror}. "
                "`tilewise ps` shows services; give another --port."
            ) from None


def as_yaml(values: dict[str, Any]) -> str:
    import yaml

    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    text: str = yaml.safe_dump(plain, allow_unicode=True, sort_keys=True)
    return text


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


_TITLES = ("NAME", "PORT", "PID", "MODEL", "STATE", "SINCE")


@dataclass(frozen=True, kw_only=True)
class PsOptions:
    GROUP: ClassVar = "service"
    name: str | None = option(None, "only this one", short="-n", metavar="NAME")


def list_services(line: CommandLine) -> int:
    options = line.take(PsOptions)
    folder = ServiceFolder.of(os.environ)
    services = [folder.find(options.name)] if options.name is not None else folder.all()
    print(table([_TITLES, *map(_cells, services)]))
    return 0


def _cells(service: BackgroundService) -> tuple[str, ...]:
    port = service.uds or service.url.rpartition(":")[2]
    since = datetime.fromtimestamp(service.since).strftime("%Y-%m-%d %H:%M:%S")
    return service.name, port, str(service.pid), service.model, state_of(service), since


_PAUSE = 0.2  # seconds


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    GROUP: ClassVar = "service"
    name: str = word("a service of `tilewise ps`, or one that has ended", "NAME")
    follow: bool = option(False, "go on until it ends, or Ctrl-C", short="-f")


def show_log(line: CommandLine) -> int:
    options = line.take(LogOptions)
    folder = ServiceFolder.of(os.environ)
    log = folder.file(options.name, "log")
    if not log.exists():
        folder.find(options.name)  # names what is near
        raise ServiceProblem(f"{log}: the log is gone.")
    write_log(folder, options.name, log, options.follow)
    return 0


def write_log(folder: ServiceFolder, name: str, log: Path, follow: bool) -> None:
    with log.open(encoding="utf-8", errors="replace") as file:
        while True:
            alive = follow and _runs(folder, name)  # asked before reading, so that its last words are not missed
            shutil.copyfileobj(file, sys.stdout)
            sys.stdout.flush()
            if not alive:
                return
            time.sleep(_PAUSE)


def _runs(folder: ServiceFolder, name: str) -> bool:
    return folder.file(name, "json").exists() and folder.find(name).alive


@dataclass(frozen=True, kw_only=True)
class StopOptions:
    GROUP: ClassVar = "service"
    name: str = word("a service of `tilewise ps`", "NAME")
    timeout: float = option(30.0, "how long to wait; longer than its --shutdown-timeout", metavar="SECONDS")


def stop_service(line: CommandLine) -> int:
    options = line.take(StopOptions)
    if not 0 <= options.timeout < float("inf"):
        raise BadUsage(f"--timeout must be 0 or above, in seconds, got {options.timeout:g}.")
    folder = ServiceFolder.of(os.environ)
    service = folder.find(options.name)
    ending = end_process(service.pid, service.birth, options.timeout, print)
    folder.forget(service)
    print(f"{service.name} (pid {service.pid}) {ending}.")
    return 0


@dataclass(frozen=True, kw_only=True)
class ArchiveOptions:
    folder: str = word("as grps has it", "FOLDER")


def archive(line: CommandLine) -> int:
    options = line.take(ArchiveOptions)
    if not Path(options.folder).is_dir():
        raise InvalidRequest(f"{options.folder}: no such folder.")
    print("Nothing was packed, and nothing has to be: `tilewise start MODEL` serves a checkpoint as it is.")
    return 0


START = Verb(
    usage="tilewise start [MODEL | server.yml] [--name NAME] [--timeout SECONDS] [FLAG ...]",
    about="Serve a model in the background, and return when it answers. All flags of `tilewise serve` are taken.",
    run=run_start,
    options=(StartOptions,),
    shared=serve_flags,
    names_model=True,
    examples="""\
examples:
  tilewise start OpenGVLab/InternVL3-8B --name internvl3 --port 2002
  tilewise start server.yml
      flags from a YAML file, or grps's keys: interface.port, max_concurrency ...
  tilewise ps; tilewise logs -f internvl3; tilewise stop internvl3
""",
)
PS = Verb(
    usage="tilewise ps [--name NAME]",
    about="List services that `tilewise start` has started. starting: does not answer yet; unhealthy: its engine is "
    "gone; ended: its process is gone, `tilewise logs NAME` says why, `tilewise stop NAME` forgets it.",
    run=list_services,
    options=(PsOptions,),
)
LOGS = Verb(
    usage="tilewise logs [--follow] NAME", about="Show what a service has written.", run=show_log, options=(LogOptions,)
)
STOP = Verb(
    usage="tilewise stop [--timeout SECONDS] NAME",
    about="Ask a service to end (SIGTERM), wait for it, and kill it (SIGKILL) if it does not.",
    run=stop_service,
    options=(StopOptions,),
)
ARCHIVE = Verb(
    usage="tilewise archive FOLDER",
    about="Says that there is nothing to pack: a checkpoint is served as it is. For scripts made for grps.",
    run=archive,
    options=(ArchiveOptions,),
)
