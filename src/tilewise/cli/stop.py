"""`tilewise stop NAME`: end a service, politely at first."""

from __future__ import annotations

import argparse
import os
from typing import Any

from tilewise.cli.flags.flag import BadUsage
from tilewise.services.process import end
from tilewise.services.record import ServiceFolder

_TIMEOUT = 30.0


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "stop",
        help="end a service",
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
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if not 0 <= options.timeout < float("inf"):
        raise BadUsage(f"--timeout must be 0 or above, in seconds, got {options.timeout:g}.")
    folder = ServiceFolder.of(os.environ)
    service = folder.find(options.name)
    ending = end(service.pid, service.birth, options.timeout, print)
    folder.forget(service)
    print(f"{service.name} (pid {service.pid}) {ending}.")
    return 0
