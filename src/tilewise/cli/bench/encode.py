"""`tilewise bench encode`: tiles through the vision tower."""

from __future__ import annotations

import argparse
from typing import Any

from tilewise.cli.bench.results import add_result_flags, keep
from tilewise.cli.options import add_engine_flags, engine_options


def add_parser(kinds: Any) -> None:
    parser = kinds.add_parser(
        "encode",
        usage="tilewise bench encode [OPTION ...]",
        help="tiles through the vision tower",
        description="Encode batches of tiles of noise, and say how many a second go through the vision tower.",
    )
    number = {"type": int, "metavar": "N"}
    parser.add_argument(
        "--batch-sizes", nargs="+", default=[1, 2, 4, 8, 16], help="tiles of a batch (default: 1 2 4 8 16)", **number
    )
    parser.add_argument("--num-iters-warmup", default=2, help="batches that do not count (default: 2)", **number)
    parser.add_argument("--num-iters", default=10, help="batches that do (default: 10)", **number)
    parser.add_argument("--seed", default=0, help="of the noise (default: 0)", **number)
    add_result_flags(parser)
    add_engine_flags(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from tilewise.bench.encode import EncodeBench, run_encode

    counts = (options.num_iters_warmup, options.num_iters, options.seed)
    bench = EncodeBench(engine_options(options), tuple(options.batch_sizes), *counts, progress=not options.disable_tqdm)
    return keep(options, run_encode(bench))
