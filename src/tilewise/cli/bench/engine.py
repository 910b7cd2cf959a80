"""`tilewise bench throughput`, `latency`, `startup`, `mm-processor` and `encode`: the engine in this process."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tilewise.cli.bench.datasets import add_dataset_flags, source_of
from tilewise.cli.bench.refused import (
    ENGINES,
    OF_ENGINE,
    OF_THROUGHPUT,
    TAKEN_BY_THROUGHPUT,
    Known,
    add_refused,
    add_taken,
)
from tilewise.cli.options import add_engine_flags, engine_options


def add_result_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("result options")
    group.add_argument("--output-json", type=Path, metavar="FILE", help="save the figures as JSON")
    group.add_argument("--disable-tqdm", action="store_true", help="no progress bar")


def keep(options: argparse.Namespace, result: dict[str, Any]) -> int:
    """Save the result where --output-json asks for it, and return the exit code."""
    from tilewise.bench.results import write_json

    if options.output_json is not None:
        write_json(options.output_json, result)
    return 0


THROUGHPUT_EXAMPLES = """\
examples:
  tilewise bench throughput --model ./InternVL3-1B --input-len 200 --output-len 64 --num-prompts 100
  tilewise bench throughput --dataset-name random-mm --random-mm-bucket-config '{(448, 448, 1): 1}' --num-prompts 20
      pictures of one tile; their tokens count
"""


def add_throughput(kinds: Any) -> None:
    parser = kinds.add_parser(
        "throughput",
        usage="tilewise bench throughput [OPTION ...]",
        help="everything at once",
        description="Ask everything at once, in this process. Tokens of pictures count as those of text do.",
        epilog=THROUGHPUT_EXAMPLES,
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
    parser.set_defaults(run=bench_throughput)


def bench_throughput(options: argparse.Namespace) -> int:
    from tilewise.bench.engine import ThroughputBench, run_throughput

    bench = ThroughputBench(
        source=source_of(options),
        engine=engine_options(options),
        n=options.n,
        chat=options.backend == "vllm-chat",
        progress=not options.disable_tqdm,
    )
    return keep(options, run_throughput(bench))


LATENCY_EXAMPLES = """\
examples:
  tilewise bench latency --model OpenGVLab/InternVL3-1B --batch-size 1
  tilewise bench latency --input-len 512 --output-len 32 --num-iters 10 --output-json latency.json
"""


def add_latency(kinds: Any) -> None:
    parser = kinds.add_parser(
        "latency",
        usage="tilewise bench latency [OPTION ...]",
        help="one batch, again and again",
        description="Answer one batch of random prompts again and again, in this process. Prefixes are not cached, "
        "unless --enable-prefix-caching asks for that.",
        epilog=LATENCY_EXAMPLES,
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
    parser.set_defaults(run=bench_latency)


def bench_latency(options: argparse.Namespace) -> int:
    from tilewise.bench.engine import LatencyBench, run_latency

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


def add_startup(kinds: Any) -> None:
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
    parser.set_defaults(run=bench_startup)


def bench_startup(options: argparse.Namespace) -> int:
    from tilewise.bench.startup import StartupBench, run_startup

    counts = (options.num_iters_cold, options.num_iters_warmup, options.num_iters_warm)
    return keep(options, run_startup(StartupBench(engine_options(options), *counts, progress=not options.disable_tqdm)))


PROCESSOR_EXAMPLES = """\
examples:
  tilewise bench mm-processor --model ./InternVL3-1B --input-len 50 --output-len 1 --num-prompts 10
  tilewise bench mm-processor --random-mm-bucket-config '{(1080, 1920, 1): 1}' --num-prompts 20
"""


def add_processor(kinds: Any) -> None:
    parser = kinds.add_parser(
        "mm-processor",
        usage="tilewise bench mm-processor [OPTION ...]",
        help="pictures before the engine",
        description="Requests with random pictures: what decoding, hashing, tiling and the prompt take, how long the "
        "engine waited for tiles, and the whole way.",
        epilog=PROCESSOR_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_dataset_flags(parser, prompts=10, name=None)
    parser.add_argument("--num-warmups", type=int, default=1, metavar="N", help="requests before (default: 1)")
    parser.add_argument("--metric-percentiles", default="99", metavar="LIST", help="such as 50,90,99 (default: 99)")
    add_result_flags(parser)
    add_engine_flags(parser)
    parser.set_defaults(run=bench_processor)


def bench_processor(options: argparse.Namespace) -> int:
    from tilewise.bench.figures import read_percents
    from tilewise.bench.processor import ProcessorBench, run_processor

    bench = ProcessorBench(
        source=source_of(options, "random-mm"),
        engine=engine_options(options),
        warmups=options.num_warmups,
        percents=read_percents(options.metric_percentiles),
        progress=not options.disable_tqdm,
    )
    return keep(options, run_processor(bench))


def add_encode(kinds: Any) -> None:
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
    parser.set_defaults(run=bench_encode)


def bench_encode(options: argparse.Namespace) -> int:
    from tilewise.bench.engine import EncodeBench, run_encode

    counts = (options.num_iters_warmup, options.num_iters, options.seed)
    bench = EncodeBench(engine_options(options), tuple(options.batch_sizes), *counts, progress=not options.disable_tqdm)
    return keep(options, run_encode(bench))
