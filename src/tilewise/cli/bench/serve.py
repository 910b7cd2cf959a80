"""`tilewise bench serve`: a server under load."""

from __future__ import annotations

import argparse
import math
import os
import uuid
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewise.cli.bench.datasets import add_dataset_flags, source_of
from tilewise.cli.bench.refused import BACKENDS, OF_SERVE, TAKEN_BY_SERVE, Known, add_refused, add_taken
from tilewise.cli.options import json_object
from tilewise.errors import InvalidConfig

if TYPE_CHECKING:
    from tilewise.bench.client import Target
    from tilewise.bench.load import LoadLevel
    from tilewise.bench.results import Saving

_SAMPLING = {
    "temperature": float,
    "top-p": float,
    "top-k": int,
    "min-p": float,
    "frequency-penalty": float,
    "presence-penalty": float,
    "repetition-penalty": float,
}
EXAMPLES = """\
examples:
  tilewise bench serve --random-input-len 200 --num-prompts 200 --request-rate 1 --save-result
      text alone, against http://127.0.0.1:8000, with the first model that is served there
  tilewise bench serve --backend openai-chat --dataset-name random-mm --random-input-len 50 --max-concurrency 4
      one picture of noise in each request
  tilewise bench serve --backend openai-chat --dataset-name custom_mm --dataset-path asked.jsonl
      your own questions: {"prompt": "What is it?", "image_files": ["a.jpg"]} in each line
  tilewise bench serve --request-rate 1,2,4,8 --num-prompts 100 --goodput ttft:500 tpot:50 --plot load.png
      one run for each rate, and latency against load as a picture
"""


def add_serve(kinds: Any) -> None:
    parser = kinds.add_parser(
        "serve",
        usage="tilewise bench serve [OPTION ...]",
        help="a server under load",
        description="Send requests to any OpenAI-compatible server, and say how long answers took. The time to first "
        "token ends with the first chunk that shows something; the first chunk of all is reported beside it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_target_flags(parser)
    _add_load_flags(parser)
    add_dataset_flags(parser, prompts=1000)
    _add_request_flags(parser)
    _add_result_flags(parser)
    add_refused(parser, OF_SERVE)
    add_taken(parser, TAKEN_BY_SERVE)
    parser.set_defaults(run=run)


def _add_target_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server options")
    backends = ("openai", "vllm", "openai-chat")
    group.add_argument(
        *("--backend", "--endpoint-type"),
        type=Known(backends, BACKENDS),
        default="openai",
        metavar="NAME",
        help="openai and vllm send completions, openai-chat conversations (default: openai)",
    )
    group.add_argument("--base-url", metavar="URL", help="of the server, without a path; in place of host and port")
    group.add_argument("--host", default="127.0.0.1", help="(default: 127.0.0.1)")
    group.add_argument("--port", type=int, default=8000, metavar="N", help="(default: 8000)")
    group.add_argument(
        "--endpoint", metavar="PATH", help="(default: /v1/completions, with openai-chat /v1/chat/completions)"
    )
    group.add_argument("--header", nargs="*", default=[], metavar="KEY=VALUE", help="further headers of each request")
    group.add_argument("--insecure", action="store_true", help="take any certificate of the server")
    group.add_argument("--model", metavar="NAME", help="name or folder of the model (default: the server's first)")
    group.add_argument("--served-model-name", metavar="NAME", help="the server's name of it, if that is another")
    group.add_argument(
        "--tokenizer", metavar="MODEL", help="whose tokenizer counts (default: the model's, else the server's own)"
    )
    group.add_argument(
        "--skip-tokenizer-init", action="store_true", help="count no tokens here; not for random prompts"
    )


def _add_load_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("load options")
    group.add_argument(
        "--request-rate",
        type=rate_list,
        default=(math.inf,),
        metavar="X",
        help="requests a second; inf = all at once; several, with commas, are runs one after the other (default: inf)",
    )
    group.add_argument(
        "--burstiness",
        type=float,
        default=1.0,
        metavar="X",
        help="1 = Poisson; less comes in bursts, more evenly (default: 1)",
    )
    group.add_argument(
        "--max-concurrency",
        type=limit_list,
        default=(None,),
        metavar="N",
        help="most requests at once; several, with commas, are runs one after the other",
    )
    group.add_argument("--ramp-up-strategy", choices=("linear", "exponential"), help="from one rate to another")
    group.add_argument("--ramp-up-start-rps", type=float, metavar="X", help="the first rate")
    group.add_argument("--ramp-up-end-rps", type=float, metavar="X", help="the last rate")
    group.add_argument(
        "--num-warmups", type=int, default=0, metavar="N", help="the first request, so often, before a run (default: 0)"
    )
    group.add_argument(
        "--ready-check-timeout-sec",
        type=float,
        default=0,
        metavar="X",
        help="wait so long for an answer to the first request; 0 = no such request (default: 0)",
    )


def _add_request_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("request options")
    group.add_argument(
        "--ignore-eos", action="store_true", help="answers go on to their full length; random data sets always do"
    )
    for name, kind in _SAMPLING.items():
        group.add_argument(f"--{name}", type=kind, metavar="X", help="of each request (default: the server's)")
    group.add_argument("--logprobs", type=int, metavar="N", help="log-probabilities of so many tokens")
    group.add_argument(
        "--extra-body", type=json_object, default={}, metavar="JSON", help="further fields of each request"
    )
    group.add_argument(
        "--request-id-prefix", metavar="TEXT", help="of X-Request-Id (default: bench-, and a random part)"
    )


def _add_result_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("result options")
    group.add_argument(
        "--percentile-metrics",
        default="ttft,tpot,itl",
        metavar="NAMES",
        help="what is printed, of ttft, tpot, itl, e2el, client_queue_time, e2el_including_client_queue "
        "(default: ttft,tpot,itl)",
    )
    group.add_argument("--metric-percentiles", default="99", metavar="LIST", help="such as 50,90,99 (default: 99)")
    group.add_argument(
        "--goodput", nargs="+", default=[], metavar="NAME:MS", help="goals of ttft, tpot, e2el that good answers keep"
    )
    group.add_argument("--save-result", action="store_true", help="save the figures as JSON")
    group.add_argument("--save-detailed", action="store_true", help="with those of every request")
    group.add_argument("--append-result", action="store_true", help="save them behind what the file has, as a line")
    group.add_argument("--result-dir", type=Path, default=Path(), metavar="FOLDER", help="(default: this one)")
    group.add_argument(
        "--result-filename",
        metavar="NAME",
        help="files of several loads get RATEqps[-concurrencyN] behind it "
        "(default: LABEL-RATEqps[-concurrencyN]-MODEL-DATE.json)",
    )
    group.add_argument("--metadata", nargs="*", default=[], metavar="KEY=VALUE", help="further fields of the JSON")
    group.add_argument("--label", metavar="TEXT", help="in the JSON and in its name (default: the backend)")
    group.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw latency against load, as PNG (needs tilewise[plot])"
    )
    group.add_argument("--disable-tqdm", action="store_true", help="no progress bar")


def rate_list(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split(",")))


def limit_list(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def run(options: argparse.Namespace) -> int:
    # Not above: numpy and an HTTP client take longer to load than other verbs to run.
    from tilewise.bench.figures import Goals, read_percents
    from tilewise.bench.results import read_metrics
    from tilewise.bench.serve import ServeBench, run_serve

    sampling = {name.replace("-", "_"): getattr(options, name.replace("-", "_")) for name in _SAMPLING}
    bench = ServeBench(
        backend=options.backend,
        target=_target(options),
        source=source_of(options),
        loads=_loads(options),
        model=options.served_model_name or options.model,
        folder=options.model,
        tokenizer=options.tokenizer,
        counts_tokens=not options.skip_tokenizer_init,
        ignore_eos=options.ignore_eos,
        logprobs=options.logprobs,
        extra={**{name: value for name, value in sampling.items() if value is not None}, **options.extra_body},
        warmups=options.num_warmups,
        ready_seconds=options.ready_check_timeout_sec,
        goals=Goals.read(options.goodput) if options.goodput else None,
        percents=read_percents(options.metric_percentiles),
        metrics=read_metrics(options.percentile_metrics),
        saving=_saving(options),
        plot=options.plot,
        progress=not options.disable_tqdm,
    )
    return run_serve(bench, partial(print, flush=True))


def _target(options: argparse.Namespace) -> Target:
    from tilewise.bench.client import Target
    from tilewise.bench.requests import DIALECTS
    from tilewise.bench.results import read_pairs

    url = options.base_url or f"http://{options.host}:{options.port}"
    if not url.startswith(("http://", "https://")):
        raise InvalidConfig(f"--base-url must begin with http:// or https://, got {url!r}.")
    dialect = DIALECTS[options.backend]
    endpoint = options.endpoint or dialect.endpoint
    is_chat = endpoint.endswith("chat/completions")
    if not endpoint.endswith("completions") or is_chat != dialect.takes_media:
        raise InvalidConfig(
            f"--endpoint {endpoint} is not what --backend {options.backend} speaks to: "
            f"leave it out, or name one that ends with {dialect.endpoint}."
        )
    key = os.environ.get("OPENAI_API_KEY") or os.environ.get("VLLM_API_KEY")
    authorization = {"Authorization": f"Bearer {key}"} if key else {}
    headers = {**authorization, **read_pairs(options.header, "--header")}
    return Target(url.rstrip("/"), endpoint, dialect, headers, verify=not options.insecure)


def _loads(options: argparse.Namespace) -> tuple[LoadLevel, ...]:
    """Return a load level for each rate and each limit of concurrency."""
    from tilewise.bench.load import Arrivals, LoadLevel, Ramp

    ramp, strategy = None, options.ramp_up_strategy
    if strategy is not None or options.ramp_up_start_rps is not None or options.ramp_up_end_rps is not None:
        if None in (strategy, options.ramp_up_start_rps, options.ramp_up_end_rps):
            raise InvalidConfig("--ramp-up-strategy, --ramp-up-start-rps and --ramp-up-end-rps go together.")
        ramp = Ramp(strategy, options.ramp_up_start_rps, options.ramp_up_end_rps)
    prefix = options.request_id_prefix or f"bench-{uuid.uuid4().hex[:8]}-"
    return tuple(
        LoadLevel(Arrivals(rate, options.burstiness, ramp), limit, options.seed, prefix)
        for rate in options.request_rate
        for limit in options.max_concurrency
    )


def _saving(options: argparse.Namespace) -> Saving:
    from tilewise.bench.results import Saving, read_pairs

    return Saving(
        options.save_result,
        options.save_detailed,
        options.append_result,
        options.result_dir,
        options.result_filename,
        options.label,
        read_pairs(options.metadata, "--metadata"),
    )
