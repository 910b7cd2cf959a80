"""`tilewise bench`: benchmarks of a server and of the engine, with vLLM's flags, tables and fields."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tilewise.bench import known
from tilewise.bench.dataset_options import DatasetChoice, RandomOptions
from tilewise.bench.options import EncodeOptions, LatencyOptions, ProcessorOptions, StartupOptions, write_result
from tilewise.cli.bench.refused import ENGINES, OF_ENGINE, OF_THROUGHPUT
from tilewise.cli.bench.serve import SERVE
from tilewise.cli.flags.parse import CommandLine
from tilewise.cli.flags.settings import engine_flags, engine_options
from tilewise.cli.flags.verb import Verb, VerbGroup
from tilewise.option import option


@dataclass(frozen=True, kw_only=True)
class ResultOptions:
    GROUP: ClassVar = "result"
    output_json: Path | None = option(None, "save the figures as JSON", metavar="FILE")
    disable_tqdm: bool = option(False, "no progress bar")

    @property
    def progress(self) -> bool:
        return not self.disable_tqdm

    def keep(self, result: dict[str, Any]) -> int:
        """Save the result where that is asked for, and return the exit code."""
        if self.output_json is not None:
            write_result(result, self.output_json)
        return 0


@dataclass(frozen=True, kw_only=True)
class ThroughputOptions:
    GROUP: ClassVar = "requests"
    backend: str = option(
        "vllm",
        "vllm: prompts as they are, vllm-chat: as conversations, which those with pictures always are",
        read=known(("vllm", "vllm-chat"), ENGINES),
        metavar="NAME",
    )
    n: int = option(1, "answers to each prompt")


def bench_throughput(line: CommandLine) -> int:
    from tilewise.bench.datasets import DatasetSource
    from tilewise.bench.engine import ThroughputBench, run_throughput

    OF_THROUGHPUT.take_from(line)
    options, results = line.take(ThroughputOptions), line.take(ResultOptions)
    source = DatasetSource(line.take(RandomOptions), line.take(DatasetChoice))
    bench = ThroughputBench(source, options.n, chat=options.backend == "vllm-chat")
    return results.keep(run_throughput(bench, engine_options(line), progress=results.progress))


def bench_latency(line: CommandLine) -> int:
    from tilewise.bench.engine import run_latency

    OF_ENGINE.take_from(line)
    options, results = line.take(LatencyOptions), line.take(ResultOptions)
    return results.keep(run_latency(options, engine_options(line), progress=results.progress))


def bench_startup(line: CommandLine) -> int:
    from tilewise.bench.startup import run_startup

    options, results = line.take(StartupOptions), line.take(ResultOptions)
    return results.keep(run_startup(options, engine_options(line), progress=results.progress))


def bench_processor(line: CommandLine) -> int:
    from tilewise.bench.processor import run_processor

    options, results = line.take(ProcessorOptions), line.take(ResultOptions)
    return results.keep(run_processor(options, engine_options(line), progress=results.progress))


def bench_encode(line: CommandLine) -> int:
    from tilewise.bench.engine import run_encode

    options, results = line.take(EncodeOptions), line.take(ResultOptions)
    return results.keep(run_encode(options, engine_options(line), progress=results.progress))


THROUGHPUT = Verb(
    usage="tilewise bench throughput [OPTION ...]",
    about="Ask everything at once, in this process. Tokens of pictures count as those of text do.",
    run=bench_throughput,
    options=(ThroughputOptions, RandomOptions, DatasetChoice, ResultOptions),
    shared=lambda: (*OF_THROUGHPUT.flags, *engine_flags()),
    examples="""\
examples:
  tilewise bench throughput --model ./InternVL3-1B --input-len 200 --output-len 64 --num-prompts 100
  tilewise bench throughput --dataset-name random-mm --random-mm-bucket-config '{(448, 448, 1): 1}' --num-prompts 20
      pictures of one tile; their tokens count
""",
)
LATENCY = Verb(
    usage="tilewise bench latency [OPTION ...]",
    about="Answer one batch of random prompts again and again, in this process. Prefixes are not cached, unless "
    "--enable-prefix-caching asks for that.",
    run=bench_latency,
    options=(LatencyOptions, ResultOptions),
    shared=lambda: (*OF_ENGINE.flags, *engine_flags()),
    examples="""\
examples:
  tilewise bench latency --model OpenGVLab/InternVL3-1B --batch-size 1
  tilewise bench latency --input-len 512 --output-len 32 --num-iters 10 --output-json latency.json
""",
)
STARTUP = Verb(
    usage="tilewise bench startup [OPTION ...]",
    about="Start the engine again and again, each time in a new process, up to its first answer. For a cold start the "
    "folders are empty in which a first one keeps things, such as the kernels that it builds.",
    run=bench_startup,
    options=(StartupOptions, ResultOptions),
    shared=engine_flags,
)
PROCESSOR = Verb(
    usage="tilewise bench mm-processor [OPTION ...]",
    about="Requests with random pictures: what decoding, hashing, tiling and the prompt take, how long the engine "
    "waited for tiles, and the whole way.",
    run=bench_processor,
    options=(ProcessorOptions, ResultOptions),
    shared=engine_flags,
    examples="""\
examples:
  tilewise bench mm-processor --model ./InternVL3-1B --input-len 50 --output-len 1 --num-prompts 10
  tilewise bench mm-processor --random-mm-bucket-config '{(1080, 1920, 1): 1}' --num-prompts 20
""",
)
ENCODE = Verb(
    usage="tilewise bench encode [OPTION ...]",
    about="Encode batches of tiles of noise, and say how many a second go through the vision tower.",
    run=bench_encode,
    options=(EncodeOptions, ResultOptions),
    shared=engine_flags,
)
BENCH = VerbGroup(
    usage="tilewise bench KIND ...",
    about="Measure a server under load, or the engine in this process. Flags, tables and fields of results are those "
    "of `vllm bench`; docs/bench.md says what is defined otherwise.",
    title="benchmarks",
    verbs={
        "serve": ("a server under load", SERVE),
        "latency": ("one batch, again and again", LATENCY),
        "throughput": ("everything at once", THROUGHPUT),
        "startup": ("starts of the engine", STARTUP),
        "mm-processor": ("pictures before the engine", PROCESSOR),
        "encode": ("tiles through the vision tower", ENCODE),
    },
)
