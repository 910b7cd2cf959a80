"""`tilewise bench latency`: how long one batch takes."""

from __future__ import annotations

import argparse
from typing import Any

from tilewise.cli.bench.refused import OF_ENGINE, add_refused
from tilewise.cli.bench.results import add_result_flags, keep
from tilewise.cli.options import add_engine_flags, engine_options

EXAMPLES = """\
examples:
  tilewise bench latency --model OpenGVLab/InternVL3-1B --batch-size 1
  tilewise bench latency --input-len 512 --output-len 32 --num-iters 10 --output-json latency.json
"""


def add_parser(kinds: Any) -> None:
    parser = kinds.add_parser(
        "latency",
        usage="tilewise bench latency [OPTION ...]",
        help="one batch, again and again",
        description="Answer one batch of random prompts again and again, in this process. Prefixes are not cached, "
        "unless --enable-prefix-caching asks for that.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    number = {"type": int, "metavar": "N"}
    parser.add_argument("--input-len", default=32, help="tokens of a prompt (default: 32)", **number)
    parser.add_argument("--output-len", default=128, help="tokens of an answer (default: 128)", **number)
    parser.add_argument("--batch-size", default=8, help="prompts (default: 8)", **number)
    parser.add_argument("--n", default=1, help="answers to each (default: 1)", **number)
    parser.add_argument("--use-beam-search", action="store_true", help="by beam search of width n")
    parser.add_argument("--num-iters-warmup", default=10, help="batches that do not count (default: 10)", **number)
    parser.add_argument("--num-iters", default=30, help="batches that do (default: 30)", **number)
    add_result_flags(parser)
    add_engine_flags(parser)
    add_refused(parser, OF_ENGINE)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from tilewise.bench.latency import LatencyBench, run_latency

    bench = LatencyBench(
        engine=engine_options(options),
        input_len=options.input_len,
        output_len=options.output_len,
        batch_size=options.batch_size,
        n=options.n,
        beams=options.use_beam_search,
        warmups=options.num_iters_warmup,
        iterations=options.num_iters,
        progress=not options.disable_tqdm,
    )
    return keep(options, run_latency(bench))
