"""The benchmark of a server: requests are made, sent at each load, and what came is shown and saved."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import httpx

from tilewise.bench import DATASETS, Say
from tilewise.bench.client import LoadClient, Target
from tilewise.bench.datasets import DatasetSource
from tilewise.bench.figures import CountTokens, Figures, Goals, ServerMetrics, with_counts
from tilewise.bench.load import LoadLevel, LoadResult, NotReady, run_load, wait_until_ready, warm_up
from tilewise.bench.options import SavingOptions, write_result
from tilewise.bench.requests import CommonFields, RequestOutcome, SampleRequest
from tilewise.bench.results import RunFacts, details, draw, failure_lines, result_json, table
from tilewise.bench.tokenizer import BenchTokenizer, LocalTokenizer, find_tokenizer
from tilewise.console import progress_bar
from tilewise.host import allow_many_open_files, require_extra


@dataclass(frozen=True, kw_only=True)
class ServeBench:
    backend: str
    target: Target
    source: DatasetSource
    loads: tuple[LoadLevel, ...]
    asking: CommonFields
    folder: str | None
    """Folder of the model's tokenizer, unless `tokenizer` names another."""
    tokenizer: str | None
    counts_tokens: bool
    warmups: int
    ready_seconds: float
    goals: Goals | None
    percents: tuple[float, ...]
    metrics: tuple[str, ...]
    results: SavingOptions


@dataclass(frozen=True)
class Prepared:
    """The model and the tokenizer, which are found before the first request is sent."""

    asking: CommonFields
    tokenizer: BenchTokenizer | None

    @property
    def count(self) -> CountTokens | None:
        """A function that counts tokens; None for the server's tokenizer, since the server may be gone by then."""
        tokenizer = self.tokenizer
        return (lambda text: len(tokenizer.encode(text))) if isinstance(tokenizer, LocalTokenizer) else None


def run_serve(bench: ServeBench, say: Say = print) -> int:
    """Run the benchmark, and return 0 if every request was answered at every load, else 1.

    Raises TilewiseError for what cannot begin.
    """
    plot = bench.results.plot
    if plot is not None:
        require_extra("matplotlib", "plot", "--plot")
    allow_many_open_files()
    with prepared(bench, say) as ready:
        runs = [(load, run_one(bench, ready, number, say)) for number, load in enumerate(bench.loads)]
    if plot is not None:
        draw(runs, ready.asking.model, plot)
        say(f"Latency against load: {plot}")
    return 1 if any(figures.failed for _, figures in runs) else 0


@contextmanager
def prepared(bench: ServeBench, say: Say) -> Iterator[Prepared]:
    model = bench.asking.model
    if not model:
        say("Model not specified, fetching first model from server...")
        model = first_model(bench.target)
        say(f"First model name: {model}")
    if "temperature" not in bench.asking.extra:
        say("The temperature is the server's own; --temperature 0 asks for the likeliest tokens.")
    ignore = bench.asking.ignore_eos or DATASETS[bench.source.choice.dataset_name].ignores_end
    asking = replace(bench.asking, model=model, ignore_eos=ignore)
    if not bench.counts_tokens:
        yield Prepared(asking, None)
        return
    with find_tokenizer(bench.tokenizer, bench.folder or model, model, bench.target) as tokenizer:
        yield Prepared(asking, tokenizer)


def first_model(target: Target) -> str:
    """Return the name of the server's first model. Raises NotReady."""
    try:
        with target.client() as client:
            answer = client.get(f"{target.url}/v1/models")
            if answer.is_error:
                raise ValueError(f"status {answer.status_code}")
            return str(answer.json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise NotReady(
            f"{target.url}/v1/models does not say which model is served ({error}): is a server there, and is "
            "OPENAI_API_KEY its key? Start one with `tilewise serve`, name another with --base-url, or the model with "
            "--model."
        ) from None


def run_one(bench: ServeBench, ready: Prepared, number: int, say: Say) -> Figures:
    """Run one of the loads, with prompts of its own: those of the last run are in the server's caches."""
    load = bench.loads[number]
    drawn = replace(bench.source.drawn, seed=bench.source.drawn.seed + number)
    requests = replace(bench.source, drawn=drawn).requests(ready.tokenizer)
    for line in load_lines(load, len(requests)):
        say(line)
    ran, server = asyncio.run(_send(bench, ready, requests, load))
    answers = with_counts(ran.answers, [request.prompt_tokens for request in requests], ready.count)
    figures = Figures.of(answers, ran.duration, bench.percents, bench.goals, server)
    for line in failure_lines([str(answer.failure) for answer in answers if answer.failure]):
        say(line)
    say(table(figures, load, bench.metrics))
    if bench.results.save_result or bench.results.append_result:
        say(f"Saved in {_save(bench, ready, number, figures, answers)}")
    return figures


def load_lines(load: LoadLevel, count: int) -> Iterator[str]:
    arrivals, ramp = load.arrivals, load.arrivals.ramp
    if ramp:
        yield f"Traffic ramp-up strategy: {ramp.strategy}, {ramp.start:g} to {ramp.end:g} RPS."
    else:
        yield f"Traffic request rate: {arrivals.rate}"
    process = "Poisson process" if arrivals.burstiness == 1 else "Gamma distribution"
    yield f"Burstiness factor: {arrivals.burstiness} ({process})"
    yield f"Maximum request concurrency: {load.concurrency}"
    yield f"Requests: {count}"


async def _send(
    bench: ServeBench, ready: Prepared, requests: Sequence[SampleRequest], load: LoadLevel
) -> tuple[LoadResult, ServerMetrics]:
    show = not bench.results.disable_tqdm
    async with LoadClient(bench.target, ready.asking) as client:
        bodies = [client.body(request) for request in requests]
        if bench.ready_seconds > 0:
            await wait_until_ready(client, bodies[0], f"{load.id_prefix}ready", bench.ready_seconds)
        if bench.warmups:
            with progress_bar("Warming up", bench.warmups, show) as advance:
                await warm_up(client, bodies[0], load, bench.warmups, advance)
        before = await client.metrics()
        with progress_bar("Requests", len(bodies), show) as advance:
            ran = await run_load(client, bodies, load, advance)
        return ran, ServerMetrics.between(before, await client.metrics())


def _save(bench: ServeBench, ready: Prepared, number: int, figures: Figures, answers: Sequence[RequestOutcome]) -> Path:
    now, load, saving = datetime.now(), bench.loads[number], bench.results
    tokenizer = ready.tokenizer.source if ready.tokenizer else None
    about = RunFacts(bench.backend, ready.asking.model, tokenizer, len(answers), load)
    result = result_json(about, saving, figures, now) | (details(answers) if saving.save_detailed else {})
    path = saving.path(about, now, runs=len(bench.loads), repeats=bench.loads[:number].count(load))
    write_result(result, path, saving.append_result)
    return path
