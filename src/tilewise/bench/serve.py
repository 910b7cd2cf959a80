"""The benchmark of a server: requests are made, sent at each load, and what came is shown and saved."""

from __future__ import annotations

import asyncio
import dataclasses
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from tilewise.bench.client import LoadClient, Target
from tilewise.bench.datasets.sources import IGNORING_END, DatasetSource
from tilewise.bench.figures import CountTokens, Figures, Goals, MeasuredAnswer, measure
from tilewise.bench.load import LoadLevel, LoadResult, NotReady, run_load, wait_until_ready, warm_up
from tilewise.bench.requests import CommonFields, RequestOutcome, SampleRequest
from tilewise.bench.results import RunFacts, Saving, TableOptions, details, failure_lines, result_json, table
from tilewise.bench.server_report import ServerReport
from tilewise.bench.words import BenchTokenizer, FoundWords, LocalWords, find_words
from tilewise.console import progress_bar
from tilewise.host import require_extra

_WANTED = 65536


def allow_many_open_files() -> None:
    """Raise the limit of open files as far as the system lets a program, up to 65536."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED if hard == resource.RLIM_INFINITY else min(_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


Say = Callable[[str], None]


@dataclass(frozen=True)
class ServeBench:
    backend: str
    target: Target
    source: DatasetSource
    loads: tuple[LoadLevel, ...] = (LoadLevel(),)
    model: str | None = None
    """The server's name of the model; None = its first."""
    folder: str | None = None
    """Folder of the model's tokenizer, unless `tokenizer` names another."""
    tokenizer: str | None = None
    counts_tokens: bool = True
    ignore_eos: bool = False
    logprobs: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    warmups: int = 0
    ready_seconds: float = 0.0
    goals: Goals | None = None
    percents: tuple[float, ...] = (99.0,)
    metrics: tuple[str, ...] = ("ttft", "tpot", "itl")
    saving: Saving = Saving()
    plot: Path | None = None
    progress: bool = True


@dataclass(frozen=True)
class Prepared:
    """The model and the tokenizer, which are found before the first request is sent."""

    asking: CommonFields
    found: FoundWords | None

    @property
    def words(self) -> BenchTokenizer | None:
        return self.found.words if self.found else None

    @property
    def count(self) -> CountTokens | None:
        """A function that counts tokens; None for the server's tokenizer, since the server may be gone by then."""
        words = self.words
        return (lambda text: len(words.encode(text))) if isinstance(words, LocalWords) else None


def run_serve(bench: ServeBench, say: Say = print) -> int:
    """Run the benchmark, and return 0 if every request was answered at every load, else 1.

    Raises TilewiseError for what cannot begin.
    """
    if bench.plot is not None:
        require_extra("matplotlib", "plot", "--plot")
    allow_many_open_files()
    with prepared(bench, say) as ready:
        runs = [run_one(bench, ready, number, say) for number in range(len(bench.loads))]
    if bench.plot is not None:
        from tilewise.bench.results import draw

        draw(runs, ready.asking.model, bench.plot)
        say(f"Latency against load: {bench.plot}")
    return 1 if any(figures.failed for _, figures in runs) else 0


def run_one(bench: ServeBench, prepared: Prepared, number: int, say: Say) -> tuple[LoadLevel, Figures]:
    """Run one of the loads, with prompts of its own: those of the last run are in the server's caches."""
    load = bench.loads[number]
    source = dataclasses.replace(bench.source, seed=bench.source.seed + number)
    requests = source.requests(prepared.words)
    say_load(load, len(requests), say)
    ran, server = asyncio.run(_send(bench, prepared, requests, load))
    return load, conclude(bench, prepared, load, requests, ran, server, say)


@contextmanager
def prepared(bench: ServeBench, say: Say) -> Iterator[Prepared]:
    model = bench.model
    if model is None:
        say("Model not specified, fetching first model from server...")
        model = first_model(bench.target)
        say(f"First model name: {model}")
    if "temperature" not in bench.extra:
        say("The temperature is the server's own; --temperature 0 asks for the likeliest tokens.")
    ignore = bench.ignore_eos or bench.source.name in IGNORING_END
    asking = CommonFields(model, ignore, bench.logprobs, tuple(bench.extra.items()))
    if not bench.counts_tokens:
        yield Prepared(asking, None)
        return
    with find_words(bench.tokenizer, bench.folder or model, model, bench.target) as found:
        yield Prepared(asking, found)


def first_model(target: Target) -> str:
    """Return the name of the server's first model. Raises NotReady."""
    try:
        with target.client() as client:
            answer = client.get(f"{target.url}/v1/models")
            answer.raise_for_status()
            return str(answer.json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise NotReady(
            f"{target.url}/v1/models does not say which model is served ({error}): is a server there? "
            "Start one with `tilewise serve`, name another with --base-url, or the model with --model."
        ) from None


def say_load(load: LoadLevel, count: int, say: Say) -> None:
    arrivals = load.arrivals
    if arrivals.ramp:
        say(
            f"Traffic ramp-up strategy: {arrivals.ramp.strategy}, {arrivals.ramp.start:g} to {arrivals.ramp.end:g} RPS."
        )
    else:
        say(f"Traffic request rate: {arrivals.rate}")
    process = "Poisson process" if arrivals.burstiness == 1 else "Gamma distribution"
    say(f"Burstiness factor: {arrivals.burstiness} ({process})")
    say(f"Maximum request concurrency: {load.concurrency}")
    say(f"Requests: {count}")


async def _send(
    bench: ServeBench, prepared: Prepared, requests: Sequence[SampleRequest], load: LoadLevel
) -> tuple[LoadResult, ServerReport]:
    async with LoadClient(bench.target, prepared.asking) as client:
        bodies = [client.body(request) for request in requests]
        if bench.ready_seconds > 0:
            await wait_until_ready(client, bodies[0], f"{load.id_prefix}ready", bench.ready_seconds)
        if bench.warmups:
            with progress_bar("Warming up", bench.warmups, bench.progress) as advance:
                await warm_up(client, bodies[0], load, bench.warmups, advance)
        before = await client.metrics()
        with progress_bar("Requests", len(bodies), bench.progress) as advance:
            ran = await run_load(client, bodies, load, advance)
        return ran, ServerReport.between(before, await client.metrics())


def conclude(
    bench: ServeBench,
    prepared: Prepared,
    load: LoadLevel,
    requests: Sequence[SampleRequest],
    ran: LoadResult,
    server: ServerReport,
    say: Say,
) -> Figures:
    """Show the figures of a run, and save them."""
    measured = measure(ran.answers, [request.prompt_tokens for request in requests], prepared.count)
    failed = [answer for answer in ran.answers if answer.failure]
    figures = Figures.of(measured, failed, ran.duration, bench.percents, bench.goals, server)
    for line in failure_lines([f"{found.failure.kind}: {found.failure.text}" for found in failed if found.failure]):
        say(line)
    say(table(figures, TableOptions(bench.metrics, load.arrivals.rate, load.concurrency)))
    if bench.saving.save or bench.saving.append:
        tokenizer = prepared.found.source if prepared.found else None
        about = RunFacts(bench.backend, prepared.asking.model, tokenizer, len(requests), load)
        say(f"Saved in {_save(bench.saving, about, figures, ran.answers, measured)}")
    return figures


def _save(
    saving: Saving,
    about: RunFacts,
    figures: Figures,
    answers: Sequence[RequestOutcome],
    measured: Sequence[MeasuredAnswer],
) -> Path:
    now = datetime.now()
    result = result_json(about, saving, figures, now)
    if saving.detailed:
        result |= details(answers, measured)
    path = saving.path(about.backend, about.load, about.model, now)
    saving.write(result, path)
    return path
