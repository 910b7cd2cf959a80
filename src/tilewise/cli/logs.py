"""`tilewise logs NAME`: what a service has written."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from tilewise.services.record import ServiceFolder, ServiceProblem

_PAUSE = 0.2  # seconds


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("logs", help="show a service's log", description="Show what a service has written.")
    parser.add_argument("name", metavar="NAME", help="a service of `tilewise ps`, or one that has ended")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until it ends, or Ctrl-C")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    folder = ServiceFolder.of(os.environ)
    log = folder.file(options.name, "log")
    if not log.exists():
        folder.find(options.name)  # names what is near
        raise ServiceProblem(f"{log}: the log is gone.")
    show(folder, options.name, log, options.follow)
    return 0


def show(folder: ServiceFolder, name: str, log: Path, follow: bool) -> None:
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
