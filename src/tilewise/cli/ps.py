"""`tilewise ps`: the services, and how they are."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from tilewise.services.health import state_of
from tilewise.services.record import Service, ServiceFolder

_TITLES = ("NAME", "PORT", "PID", "MODEL", "STATE", "SINCE")


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "ps",
        help="list services",
        description="List services that `tilewise start` has started. starting: does not answer yet; unhealthy: its "
        "engine is gone; ended: its process is gone, `tilewise logs NAME` says why, `tilewise stop NAME` forgets it.",
    )
    parser.add_argument("-n", "--name", metavar="NAME", help="only this one")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    folder = ServiceFolder.of(os.environ)
    services = [folder.find(options.name)] if options.name is not None else folder.all()
    print(table([_TITLES, *map(_cells, services)]))
    return 0


def _cells(service: Service) -> tuple[str, ...]:
    port = service.uds or service.url.rpartition(":")[2]
    since = datetime.fromtimestamp(service.since).strftime("%Y-%m-%d %H:%M:%S")
    return service.name, port, str(service.pid), service.model, state_of(service), since


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they have to be: names are there to be copied."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
