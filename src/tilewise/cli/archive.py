"""`tilewise archive FOLDER`: for scripts that come from grps, where a service is packed before it is started."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tilewise.errors import InvalidRequest


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "archive",
        help="nothing: a checkpoint is served as it is",
        description="Says that there is nothing to pack: a checkpoint is served as it is. For scripts made for grps.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="as grps has it")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if not options.folder.is_dir():
        raise InvalidRequest(f"{options.folder}: no such folder.")
    print("Nothing was packed, and nothing has to be: `tilewise start MODEL` serves a checkpoint as it is.")
    return 0
