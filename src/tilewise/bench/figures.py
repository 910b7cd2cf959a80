"""Figures: a run's answers in numbers, and goals that an answer has to keep to count as good.

Two definitions differ from vLLM's, and both are there: the time to first token (`ttft`) ends with the first chunk that
shows something, and the first chunk of all, which vLLM takes, is `first_chunk`. Gaps (`itl`) are between chunks that
show something.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewise.bench.requests import RequestOutcome
from tilewise.bench.server_report import ServerReport
from tilewise.errors import InvalidConfig, did_you_mean


@dataclass(frozen=True, slots=True)
class Spread:
    mean: float
    median: float
    deviation: float
    percentiles: tuple[tuple[float, float], ...]
    """Pairs of percent and value."""

    @classmethod
    def of(cls, values: Sequence[float], percents: Sequence[float]) -> Spread:
        """Return the spread of values; zeros where nothing was measured, as in vLLM."""
        known = np.asarray(values if len(values) else [0.0])
        percentiles = tuple((percent, float(np.percentile(known, percent))) for percent in percents)
        return cls(float(known.mean()), float(np.median(known)), float(known.std()), percentiles)

    def scaled(self, factor: float) -> Spread:
        percentiles = tuple((percent, value * factor) for percent, value in self.percentiles)
        return Spread(self.mean * factor, self.median * factor, self.deviation * factor, percentiles)


def percent_name(percent: float) -> str:
    """Return a percent as the names of fields have it.

    >>> percent_name(99.0), percent_name(99.9)
    ('99', '99.9')
    """
    return str(int(percent)) if percent == int(percent) else str(percent)


def read_percents(text: str) -> tuple[float, ...]:
    """Read `25,50,99.9` of --metric-percentiles. Raises InvalidConfig."""
    try:
        percents = tuple(float(item) for item in text.split(","))
    except ValueError:
        percents = ()
    if not percents or not all(0 <= percent <= 100 for percent in percents):
        raise InvalidConfig(f"--metric-percentiles takes numbers from 0 to 100, such as 50,99, got {text!r}.")
    return percents


NAMES = ("ttft", "tpot", "e2el")


@dataclass(frozen=True, slots=True)
class Goals:
    """The most milliseconds that a good answer takes; None = no goal."""

    ttft: float | None = None
    tpot: float | None = None
    e2el: float | None = None

    @classmethod
    def read(cls, pairs: Sequence[str]) -> Goals:
        """Read `ttft:500 tpot:50` of --goodput. Raises InvalidConfig."""
        found: dict[str, float] = {}
        for pair in pairs:
            name, _, value = pair.partition(":")
            if name not in NAMES:
                hint = did_you_mean(name, NAMES)
                raise InvalidConfig(f"--goodput knows {', '.join(NAMES)}, got {pair!r}.{hint}")
            found[name] = _milliseconds(value, pair)
        return cls(**found)

    def met(self, answer: RequestOutcome, output_tokens: int) -> bool:
        """Return whether an answer keeps every goal. A single token has no time per output token, so it keeps that."""
        measured = (answer.first_content, answer.per_token(output_tokens) or 0.0, answer.latency)
        goals = (self.ttft, self.tpot, self.e2el)
        return all(goal is None or 1000 * value <= goal for value, goal in zip(measured, goals, strict=True))


def _milliseconds(text: str, pair: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise InvalidConfig(f"--goodput takes NAME:MILLISECONDS, such as ttft:500, got {pair!r}.")
    return value


CountTokens = Callable[[str], int]
METRICS = ("ttft", "first_chunk", "tpot", "itl", "e2el", "client_queue_time", "e2el_including_client_queue")


@dataclass(frozen=True, slots=True)
class MeasuredAnswer:
    """An answer that came whole, with its tokens."""

    answer: RequestOutcome
    input_tokens: int
    output_tokens: int

    @property
    def per_token(self) -> float | None:
        return self.answer.per_token(self.output_tokens)


@dataclass(frozen=True)
class Figures:
    duration: float
    completed: int
    failed: int
    total_input_tokens: int
    total_output_tokens: int
    request_throughput: float
    request_goodput: float | None
    output_throughput: float
    total_token_throughput: float
    max_output_tokens_per_s: float
    max_concurrent_requests: int
    spreads: dict[str, Spread]
    """Milliseconds of each of METRICS."""
    failures: dict[str, int]
    """Number of failures of each kind, the commonest first."""
    total_image_tokens: int | None = None
    total_tiles: int | None = None
    server: ServerReport | None = None

    @classmethod
    def of(
        cls,
        measured: Sequence[MeasuredAnswer],
        failed: Sequence[RequestOutcome],
        duration: float,
        percents: Sequence[float],
        goals: Goals | None = None,
        server: ServerReport | None = None,
    ) -> Figures:
        answers = [item.answer for item in measured]
        inputs, outputs = (sum(getattr(item, name) for item in measured) for name in ("input_tokens", "output_tokens"))
        good = sum(goals.met(item.answer, item.output_tokens) for item in measured) if goals else None
        return cls(
            duration=duration,
            completed=len(measured),
            failed=len(failed),
            total_input_tokens=inputs,
            total_output_tokens=outputs,
            request_throughput=len(measured) / duration,
            request_goodput=None if good is None else good / duration,
            output_throughput=outputs / duration,
            total_token_throughput=(inputs + outputs) / duration,
            max_output_tokens_per_s=peak_tokens(measured),
            max_concurrent_requests=peak_requests(answers),
            spreads=_spreads(measured, percents),
            failures=dict(Counter(answer.failure.kind for answer in failed if answer.failure).most_common()),
            total_image_tokens=_known_sum([answer.tokens.image for answer in answers]),
            total_tiles=_known_sum([answer.tokens.tiles for answer in answers]),
            server=server,
        )

    def as_json(self) -> dict[str, Any]:
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        spreads, server, failures = found.pop("spreads"), found.pop("server"), found.pop("failures")
        return {**found, "rtfx": 0.0, "failures": failures, **_spread_fields(spreads), **_server_fields(server)}


def measure(
    answers: Sequence[RequestOutcome], prompt_tokens: Sequence[int | None], count: CountTokens | None
) -> list[MeasuredAnswer]:
    """Return the answers that came whole, with their tokens, which are counted here where the server does not."""
    found = []
    for answer, prompt in zip(answers, prompt_tokens, strict=True):
        if answer.failure is None:
            asked = answer.tokens.prompt if answer.tokens.prompt is not None else prompt or 0
            found.append(MeasuredAnswer(answer, asked, _output_tokens(answer, count)))
    return found


def _output_tokens(answer: RequestOutcome, count: CountTokens | None) -> int:
    if answer.tokens.completion is not None:
        return answer.tokens.completion
    return count(answer.text) if count else len(answer.contents)


def peak_tokens(measured: Sequence[MeasuredAnswer]) -> float:
    """Return the most tokens in one second of the run; those of an answer are spread over its chunks."""
    seconds: defaultdict[int, float] = defaultdict(float)
    for item in measured:
        times = item.answer.contents or (item.answer.latency,)
        for moment in times:
            seconds[int(item.answer.start + moment)] += item.output_tokens / len(times)
    return float(max(seconds.values(), default=0))


def peak_requests(answers: Sequence[RequestOutcome]) -> int:
    """Return the most requests in flight at one moment. (vLLM counts whole seconds, in which many may come and go.)"""
    changes = [(answer.start, 1) for answer in answers] + [(answer.start + answer.latency, -1) for answer in answers]
    peak = now = 0
    for _, change in sorted(changes):
        now += change
        peak = max(peak, now)
    return peak


def _spreads(measured: Sequence[MeasuredAnswer], percents: Sequence[float]) -> dict[str, Spread]:
    answers = [item.answer for item in measured]
    values: dict[str, list[float]] = {
        "ttft": [answer.first_content for answer in answers],
        "first_chunk": [answer.first_chunk or answer.first_content for answer in answers],
        "tpot": [item.per_token for item in measured if item.per_token is not None],
        "itl": [gap for answer in answers for gap in answer.gaps],
        "e2el": [answer.latency for answer in answers],
        "client_queue_time": [answer.queued for answer in answers],
        "e2el_including_client_queue": [answer.queued + answer.latency for answer in answers],
    }
    return {name: Spread.of(values[name], percents).scaled(1000) for name in METRICS}


def _spread_fields(spreads: dict[str, Spread]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, spread in spreads.items():
        found |= {
            f"mean_{name}_ms": spread.mean,
            f"median_{name}_ms": spread.median,
            f"std_{name}_ms": spread.deviation,
        }
        found |= {f"p{percent_name(percent)}_{name}_ms": value for percent, value in spread.percentiles}
    return found


def _server_fields(server: ServerReport | None) -> dict[str, float | None]:
    """Return the JSON's fields about the server, times in milliseconds."""
    if server is None:
        return {}
    found: dict[str, float | None] = {"tiles_encoded": server.tiles_encoded}
    for name, seconds in (("mean_preprocess_ms", server.preprocess), ("mean_encode_ms", server.encode)):
        found[name] = None if seconds is None else 1000 * seconds
    if server.drafts:
        found |= {
            "spec_decode_acceptance_rate": 100 * server.accepted_tokens / max(server.draft_tokens, 1),
            "spec_decode_acceptance_length": 1 + server.accepted_tokens / server.drafts,
            "spec_decode_num_drafts": server.drafts,
            "spec_decode_draft_tokens": server.draft_tokens,
            "spec_decode_accepted_tokens": server.accepted_tokens,
        }
    return found


def _known_sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
