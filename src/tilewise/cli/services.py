"""`tilewise ps`, `logs`, `stop` and `archive`: services that `tilewise start` has put into the background."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from tilewise.cli.flags.flag import BadUsage
from tilewise.cli.options import table
from tilewise.errors import InvalidRequest
from tilewise.services.launch import state_of
from tilewise.services.record import BackgroundService, ServiceFolder, ServiceProblem, end_process

_TITLES = ("NAME", "PORT", "PID", "MODEL", "STATE", "SINCE")


def add_ps(verbs: Any) -> None:
    parser = verbs.add_parser(
        "ps",
        description="List services that `tilewise start` has started. starting: does not answer yet; unhealthy: its "
        "engine is gone; ended: its process is gone, `tilewise logs NAME` says why, `tilewise stop NAME` forgets it.",
    )
    parser.add_argument("-n", "--name", metavar="NAME", help="only this one")
    parser.set_defaults(run=list_services)


def list_services(options: argparse.Namespace) -> int:
    folder = ServiceFolder.of(os.environ)
    services = [folder.find(options.name)] if options.name is not None else folder.all()
    print(table([_TITLES, *map(_cells, services)]))
    return 0


def _cells(service: BackgroundService) -> tuple[str, ...]:
    port = service.uds or service.url.rpartition(":")[2]
    since = datetime.fromtimestamp(service.since).strftime("%Y-%m-%d %H:%M:%S")
    return service.name, port, str(service.pid), service.model, state_of(service), since


_PAUSE = 0.2  # seconds


def add_logs(verbs: Any) -> None:
    parser = verbs.add_parser("logs", description="Show what a service has written.")
    parser.add_argument("name", metavar="NAME", help="a service of `tilewise ps`, or one that has ended")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until it ends, or Ctrl-C")
    parser.set_defaults(run=show_log)


def show_log(options: argparse.Namespace) -> int:
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


_TIMEOUT = 30.0


def add_stop(verbs: Any) -> None:
    parser = verbs.add_parser(
        "stop",
        description="Ask a service to end (SIGTERM), wait for it, and kill it (SIGKILL) if it does not.",
    )
    parser.add_argument("name", metavar="NAME", help="a service of `tilewise ps`")
    parser.add_argument(
        "--timeout",
        type=float,
        default=_TIMEOUT,
        metavar="SECONDS",
        help=f"how long to wait; longer than its --shutdown-timeout (default: {_TIMEOUT:g})",
    )
    parser.set_defaults(run=stop_service)


def stop_service(options: argparse.Namespace) -> int:
    if not 0 <= options.timeout < float("inf"):
        raise BadUsage(f"--timeout must be 0 or above, in seconds, got {options.timeout:g}.")
    folder = ServiceFolder.of(os.environ)
    service = folder.find(options.name)
    ending = end_process(service.pid, service.birth, options.timeout, print)
    folder.forget(service)
    print(f"{service.name} (pid {service.pid}) {ending}.")
    return 0


def add_archive(verbs: Any) -> None:
    parser = verbs.add_parser(
        "archive",
        description="Says that there is nothing to pack: a checkpoint is served as it is. For scripts made for grps.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="as grps has it")
    parser.set_defaults(run=archive)


def archive(options: argparse.Namespace) -> int:
    if not options.folder.is_dir():
        raise InvalidRequest(f"{options.folder}: no such folder.")
    print("Nothing was packed, and nothing has to be: `tilewise start MODEL` serves a checkpoint as it is.")
    return 0
