"""`tilewise bench throughput`: how much gets done when everything is asked at once."""

from __future__ import annotations

import argparse
from typing import Any

from tilewise.cli.bench.datasets import add_dataset_flags, source_of
from tilewise.cli.bench.refused import ENGINES, OF_THROUGHPUT, TAKEN_BY_THROUGHPUT, Known, add_refused, add_taken
from tilewise.cli.bench.results import add_result_flags, keep
from tilewise.cli.options import add_engine_flags, engine_options

EXAMPLES = """\
examples:
  tilewise bench throughput --model ./InternVL3-1B --input-len 200 --output-len 64 --num-prompts 100
  tilewise bench throughput --dataset-name random-mm --random-mm-bucket-config '{(448, 448, 1): 1}' --num-prompts 20
      pictures of one tile; their tokens count
"""


def add_parser(kinds: Any) -> None:
    parser = kinds.add_parser(
        "throughput",
        usage="tilewise bench throughput [OPTION ...]",
        help="everything at once",
        description="Ask everything at once, in this process. Tokens of pictures count as those of text do.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--backend",
        type=Known(("vllm", "vllm-chat"), ENGINES),
        default="vllm",
        metavar="NAME",
        help="vllm: prompts as they are, vllm-chat: as conversations, which those with pictures always are "
        "(default: vllm)",
    )
    parser.add_argument("--n", type=int, default=1, metavar="N", help="answers to each prompt (default: 1)")
    add_dataset_flags(parser, prompts=1000)
    add_result_flags(parser)
    add_engine_flags(parser)
    add_refused(parser, OF_THROUGHPUT)
    add_taken(parser, TAKEN_BY_THROUGHPUT)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from tilewise.bench.throughput import ThroughputBench, run_throughput

    bench = ThroughputBench(
        source=source_of(options),
        engine=engine_options(options),
        n=options.n,
        chat=options.backend == "vllm-chat",
        progress=not options.disable_tqdm,
    )
    return keep(options, run_throughput(bench))
