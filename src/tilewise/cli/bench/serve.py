"""`tilewise bench serve`: a server under load."""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tilewise.bench import known
from tilewise.bench.dataset_options import DatasetChoice, RandomOptions
from tilewise.bench.options import SavingOptions, read_pairs
from tilewise.bench.requests import DIALECTS, CommonFields
from tilewise.cli.bench.refused import BACKENDS, OF_SERVE
from tilewise.cli.flags.flag import read_number
from tilewise.cli.flags.parse import CommandLine
from tilewise.cli.flags.verb import Verb
from tilewise.environment import Environment
from tilewise.errors import InvalidConfig
from tilewise.option import option
from tilewise.units import read_amount

if TYPE_CHECKING:
    from tilewise.bench.client import Target
    from tilewise.bench.load import LoadLevel


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    GROUP: ClassVar = "server"
    backend: str = option(
        "openai",
        "openai and vllm send completions, openai-chat conversations",
        read=known(tuple(DIALECTS), BACKENDS),
        alias="endpoint_type",
        metavar="NAME",
    )
    base_url: str | None = option(None, "of the server, without a path; in place of host and port", metavar="URL")
    host: str = option("127.0.0.1", "of the server")
    port: int = option(8000, "of the server")
    endpoint: str | None = option(
        None, "(default: /v1/completions, with openai-chat /v1/chat/completions)", metavar="PATH"
    )
    header: tuple[str, ...] = option((), "further headers of each request", metavar="KEY=VALUE", bare=())
    insecure: bool = option(False, "take any certificate of the server")
    model: str | None = option(None, "name or folder of the model (default: the server's first)", metavar="NAME")
    served_model_name: str | None = option(None, "the server's name of it, if that is another", metavar="NAME")
    tokenizer: str | None = option(
        None, "whose tokenizer counts (default: the model's, else the server's own)", metavar="MODEL"
    )
    skip_tokenizer_init: bool = option(False, "count no tokens here; not for random prompts")

    def target(self) -> Target:
        from tilewise.bench.client import Target

        # Other verbs and clients name the API's root, which is the same server.
        url = (self.base_url or f"http://{self.host}:{self.port}").rstrip("/").removesuffix("/v1")
        if not url.startswith(("http://", "https://")):
            raise InvalidConfig(f"--base-url must begin with http:// or https://, got {url!r}.")
        dialect = DIALECTS[self.backend]
        endpoint = self.endpoint or dialect.endpoint
        is_chat = endpoint.endswith("chat/completions")
        if not endpoint.endswith("completions") or is_chat != dialect.takes_media:
            raise InvalidConfig(
                f"--endpoint {endpoint} is not what --backend {self.backend} speaks to: "
                f"leave it out, or name one that ends with {dialect.endpoint}."
            )
        key = Environment.here().client_key
        authorization = {"Authorization": f"Bearer {key}"} if key else {}
        headers = {**authorization, **read_pairs(self.header, "--header")}
        return Target(url.rstrip("/"), endpoint, dialect, headers, verify=not self.insecure)


def rate_list(text: str) -> tuple[float, ...]:
    return tuple(map(read_number, text.split(",")))


def limit_list(text: str) -> tuple[int, ...]:
    return tuple(map(read_amount, text.split(",")))


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    GROUP: ClassVar = "load"
    request_rate: tuple[float, ...] = option(
        (math.inf,),
        "requests a second; inf = all at once; several, with commas, are runs one after the other",
        read=rate_list,
        metavar="X",
    )
    burstiness: float = option(1.0, "1 = Poisson; less comes in bursts, more evenly")
    max_concurrency: tuple[int, ...] | None = option(
        None, "most requests at once; several, with commas, are runs one after the other", read=limit_list, metavar="N"
    )
    ramp_up_strategy: Literal["linear", "exponential"] | None = option(None, "from one rate to another")
    ramp_up_start_rps: float | None = option(None, "the first rate")
    ramp_up_end_rps: float | None = option(None, "the last rate")
    num_warmups: int = option(0, "the first request, so often, before a run")
    ready_check_timeout_sec: float = option(0.0, "wait so long for an answer to the first request; 0 = no such request")

    def levels(self, seed: int, id_prefix: str | None) -> tuple[LoadLevel, ...]:
        """Return a load level for each rate and each limit of concurrency."""
        from tilewise.bench.load import Arrivals, LoadLevel, Ramp

        strategy, first, last = self.ramp_up_strategy, self.ramp_up_start_rps, self.ramp_up_end_rps
        ramp = None
        if strategy is not None and first is not None and last is not None:
            ramp = Ramp(strategy, first, last)
        elif (strategy, first, last) != (None, None, None):
            raise InvalidConfig("--ramp-up-strategy, --ramp-up-start-rps and --ramp-up-end-rps go together.")
        prefix = id_prefix or f"bench-{uuid.uuid4().hex[:8]}-"
        return tuple(
            LoadLevel(Arrivals(rate, self.burstiness, ramp), limit, seed, prefix)
            for rate in self.request_rate
            for limit in self.max_concurrency or (None,)
        )


_OF_SERVER = "of each request (default: the server's)"
_SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty"),
)


@dataclass(frozen=True, kw_only=True)
class RequestOptions:
    GROUP: ClassVar = "request"
    ignore_eos: bool = option(False, "answers go on to their full length; random data sets always do")
    temperature: float | None = option(None, _OF_SERVER)
    top_p: float | None = option(None, _OF_SERVER)
    top_k: int | None = option(None, _OF_SERVER)
    min_p: float | None = option(None, _OF_SERVER)
    frequency_penalty: float | None = option(None, _OF_SERVER)
    presence_penalty: float | None = option(None, _OF_SERVER)
    repetition_penalty: float | None = option(None, _OF_SERVER)
    logprobs: int | None = option(None, "log-probabilities of so many tokens")
    extra_body: dict[str, Any] | None = option(None, "further fields of each request")
    request_id_prefix: str | None = option(None, "of X-Request-Id (default: bench-, and a random part)")

    def fields(self, model: str) -> CommonFields:
        """Return the fields that each request has beside its own."""
        sampling = {name: value for name in _SAMPLING if (value := getattr(self, name)) is not None}
        return CommonFields(model, self.ignore_eos, self.logprobs, sampling | (self.extra_body or {}))


def run(line: CommandLine) -> int:
    # Not above: numpy and an HTTP client take longer to load than other verbs to run.
    from tilewise.bench.datasets import DatasetSource
    from tilewise.bench.figures import Goals, read_percents
    from tilewise.bench.results import read_metrics
    from tilewise.bench.serve import ServeBench, run_serve

    OF_SERVE.take_from(line)
    server, load, asked, results = (
        line.take(ServerOptions), line.take(LoadOptions), line.take(RequestOptions), line.take(SavingOptions)
    )  # fmt: skip
    drawn = line.take(RandomOptions)
    bench = ServeBench(
        backend=server.backend,
        target=server.target(),
        source=DatasetSource(drawn, line.take(DatasetChoice)),
        loads=load.levels(drawn.seed, asked.request_id_prefix),
        asking=asked.fields(server.served_model_name or server.model or ""),
        folder=server.model,
        tokenizer=server.tokenizer,
        counts_tokens=not server.skip_tokenizer_init,
        warmups=load.num_warmups,
        ready_seconds=load.ready_check_timeout_sec,
        goals=Goals.read(results.goodput) if results.goodput else None,
        percents=read_percents(results.metric_percentiles),
        metrics=read_metrics(results.percentile_metrics),
        results=results,
    )
    return run_serve(bench, partial(print, flush=True))


SERVE = Verb(
    usage="tilewise bench serve [OPTION ...]",
    about="Send requests to any OpenAI-compatible server, and say how long answers took. The time to first token ends "
    "with the first chunk that shows something; the first chunk of all is reported beside it.",
    run=run,
    options=(ServerOptions, LoadOptions, RandomOptions, DatasetChoice, RequestOptions, SavingOptions),
    shared=lambda: OF_SERVE.flags,
    examples="""\
examples:
  tilewise bench serve --random-input-len 200 --num-prompts 200 --request-rate 1 --save-result
      text alone, against http://127.0.0.1:8000, with the first model that is served there
  tilewise bench serve --backend openai-chat --dataset-name random-mm --random-input-len 50 --max-concurrency 4
      one picture of noise in each request
  tilewise bench serve --backend openai-chat --dataset-name custom_mm --dataset-path asked.jsonl
      your own questions: {"prompt": "What is it?", "image_files": ["a.jpg"]} in each line
  tilewise bench serve --request-rate 1,2,4,8 --num-prompts 100 --goodput ttft:500 tpot:50 --plot load.png
      one run for each rate, and latency against load as a picture
""",
)
