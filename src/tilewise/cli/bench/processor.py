"""`tilewise bench mm-processor`: what happens to pictures before the engine has them."""

from __future__ import annotations

import argparse
from typing import Any

from tilewise.cli.bench.datasets import add_dataset_flags, source_of
from tilewise.cli.bench.results import add_result_flags, keep
from tilewise.cli.options import add_engine_flags, engine_options

EXAMPLES = """\
examples:
  tilewise bench mm-processor --model ./InternVL3-1B --input-len 50 --output-len 1 --num-prompts 10
  tilewise bench mm-processor --random-mm-bucket-config '{(1080, 1920, 1): 1}' --num-prompts 20
"""


def add_parser(kinds: Any) -> None:
    parser = kinds.add_parser(
        "mm-processor",
        usage="tilewise bench mm-processor [OPTION ...]",
        help="pictures before the engine",
        description="Requests with random pictures: what decoding, hashing, tiling and the prompt take, how long the "
        "engine waited for tiles, and the whole way.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_dataset_flags(parser, prompts=10, name=None)
    parser.add_argument("--num-warmups", type=int, default=1, metavar="N", help="requests before (default: 1)")
    parser.add_argument("--metric-percentiles", default="99", metavar="LIST", help="such as 50,90,99 (default: 99)")
    add_result_flags(parser)
    add_engine_flags(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from tilewise.bench.processor import ProcessorBench, run_processor
    from tilewise.bench.spread import read_percents

    bench = ProcessorBench(
        source=source_of(options, "random-mm"),
        engine=engine_options(options),
        warmups=options.num_warmups,
        percents=read_percents(options.metric_percentiles),
        progress=not options.disable_tqdm,
    )
    return keep(options, run_processor(bench))
