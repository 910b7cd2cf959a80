"""`tilewise bench startup`: how long the engine takes to start."""

from __future__ import annotations

import argparse
from typing import Any

from tilewise.cli.bench.results import add_result_flags, keep
from tilewise.cli.options import add_engine_flags, engine_options


def add_parser(kinds: Any) -> None:
    parser = kinds.add_parser(
        "startup",
        usage="tilewise bench startup [OPTION ...]",
        help="starts of the engine",
        description="Start the engine again and again, each time in a new process, up to its first answer. For a cold "
        "start the folders are empty in which a first one keeps things, such as the kernels that it builds.",
    )
    for name, count, text in (
        ("cold", 3, "cold starts"),
        ("warmup", 1, "starts before the warm ones, which do not count"),
        ("warm", 3, "warm starts"),
    ):
        parser.add_argument(
            f"--num-iters-{name}", type=int, default=count, metavar="N", help=f"{text} (default: {count})"
        )
    add_result_flags(parser)
    add_engine_flags(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from tilewise.bench.startup import StartupBench, run_startup

    counts = (options.num_iters_cold, options.num_iters_warmup, options.num_iters_warm)
    return keep(options, run_startup(StartupBench(engine_options(options), *counts, progress=not options.disable_tqdm)))
