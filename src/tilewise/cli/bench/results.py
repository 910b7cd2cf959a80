"""`--output-json` and `--disable-tqdm`, which all benchmarks of the engine have."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_result_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("result options")
    group.add_argument("--output-json", type=Path, metavar="FILE", help="save the figures as JSON")
    group.add_argument("--disable-tqdm", action="store_true", help="no progress bar")


def keep(options: argparse.Namespace, result: dict[str, Any]) -> int:
    """The exit code."""
    from tilewise.bench.saving import write_json

    if options.output_json is not None:
        write_json(options.output_json, result)
    return 0
