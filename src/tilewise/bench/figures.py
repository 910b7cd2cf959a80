"""Figures: a run's answers in numbers, and goals that an answer has to keep to count as good.

Two definitions differ from vLLM's, and both are there: the time to first token (`ttft`) ends with the first chunk that
shows something, and the first chunk of all, which vLLM takes, is `first_chunk`. Gaps (`itl`) are between chunks that
show something.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np

from tilewise.bench.requests import RequestOutcome
from tilewise.chat_server import metric_sums
from tilewise.errors import InvalidConfig, did_you_mean


@dataclass(frozen=True)
class ServerMetrics:
    """A server's own account of a run: pictures, their preprocessing, drafts.

    Each is the difference between two readings of /metrics, summed over its labels; None = the server has no such one.
    """

    tiles_encoded: int | None = None
    mean_preprocess_ms: float | None = None
    """Time of a request with media, before the engine had it."""
    mean_encode_ms: float | None = None
    """Time that a request waited for its tiles."""
    drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0

    @classmethod
    def between(cls, before: str, after: str) -> ServerMetrics:
        earlier = metric_sums(before)
        grown = {name: value - earlier.get(name, 0.0) for name, value in metric_sums(after).items()}

        def mean_ms(histogram: str) -> float | None:
            count = grown.get(f"{histogram}_count", 0.0)
            return 1000 * grown[f"{histogram}_sum"] / count if count else None

        tiles = grown.get("tilewise:tiles_encoded_total")
        return cls(
            tiles_encoded=None if tiles is None else int(tiles),
            mean_preprocess_ms=mean_ms("vllm:mm_preprocessing_total_latency_seconds"),
            mean_encode_ms=mean_ms("tilewise:request_encode_time_seconds"),
            drafts=int(grown.get("vllm:spec_decode_num_drafts_total", 0)),
            draft_tokens=int(grown.get("vllm:spec_decode_num_draft_tokens_total", 0)),
            accepted_tokens=int(grown.get("vllm:spec_decode_num_accepted_tokens_total", 0)),
        )

    @property
    def acceptance_rate(self) -> float:
        """Draft tokens that were accepted, in percent."""
        return 100 * self.accepted_tokens / max(self.draft_tokens, 1)

    @property
    def acceptance_length(self) -> float:
        """Mean tokens of a step that had a draft, its own one among them."""
        return 1 + self.accepted_tokens / self.drafts

    def as_json(self) -> dict[str, float | None]:
        pictures = {name: getattr(self, name) for name in ("tiles_encoded", "mean_preprocess_ms", "mean_encode_ms")}
        if not self.drafts:
            return pictures
        return pictures | {
            "spec_decode_acceptance_rate": self.acceptance_rate,
            "spec_decode_acceptance_length": self.acceptance_length,
            "spec_decode_num_drafts": self.drafts,
            "spec_decode_draft_tokens": self.draft_tokens,
            "spec_decode_accepted_tokens": self.accepted_tokens,
        }


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

    def by_percent(self, prefix: str = "") -> dict[str, float]:
        """Return the percentiles by the names of their percents, such as `99` and `99.9`."""
        return {f"{prefix}{percent_name(percent)}": value for percent, value in self.percentiles}

    def as_json(self) -> dict[str, float]:
        return {"mean": self.mean, "median": self.median, "std": self.deviation, **self.by_percent("p")}


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


@dataclass(frozen=True, slots=True)
class Goals:
    """The most milliseconds that a good answer takes; None = no goal."""

    ttft: float | None = None
    tpot: float | None = None
    e2el: float | None = None

    @classmethod
    def read(cls, pairs: Sequence[str]) -> Goals:
        """Read `ttft:500 tpot:50` of --goodput. Raises InvalidConfig."""
        names = [field.name for field in dataclasses.fields(cls)]
        found: dict[str, float] = {}
        for pair in pairs:
            name, _, value = pair.partition(":")
            if name not in names:
                hint = did_you_mean(name, names)
                raise InvalidConfig(f"--goodput knows {', '.join(names)}, got {pair!r}.{hint}")
            found[name] = _milliseconds(value, pair)
        return cls(**found)

    def met(self, answer: RequestOutcome) -> bool:
        """Return whether an answer keeps every goal. A single token has no time per output token, so it keeps that."""
        measured = (answer.first_content, answer.per_token or 0.0, answer.latency)
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


def with_counts(
    answers: Sequence[RequestOutcome], prompt_tokens: Sequence[int | None], count: CountTokens | None
) -> list[RequestOutcome]:
    """Return the outcomes with the tokens of each whole answer, which are counted here where the server does not."""
    found = []
    for answer, prompt in zip(answers, prompt_tokens, strict=True):
        tokens = answer.tokens
        if tokens.prompt is None:
            tokens = replace(tokens, prompt=prompt or 0)
        if tokens.completion is None:
            tokens = replace(tokens, completion=count(answer.text) if count else len(answer.contents))
        found.append(answer if answer.failure else replace(answer, tokens=tokens))
    return found


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
    """Milliseconds of each metric."""
    failures: dict[str, int]
    """Number of failures of each kind, the commonest first."""
    total_image_tokens: int | None = None
    total_tiles: int | None = None
    server: ServerMetrics = ServerMetrics()

    @classmethod
    def of(
        cls,
        outcomes: Sequence[RequestOutcome],
        duration: float,
        percents: Sequence[float],
        goals: Goals | None = None,
        server: ServerMetrics = ServerMetrics(),
    ) -> Figures:
        """Work out the figures of all requests of a run, whose tokens are known (`with_counts`)."""
        answers = [outcome for outcome in outcomes if outcome.failure is None]
        failures = [outcome.failure.kind for outcome in outcomes if outcome.failure]
        inputs = sum(answer.tokens.prompt or 0 for answer in answers)
        outputs = sum(answer.output_tokens for answer in answers)
        good = sum(map(goals.met, answers)) if goals else None
        return cls(
            duration=duration,
            completed=len(answers),
            failed=len(failures),
            total_input_tokens=inputs,
            total_output_tokens=outputs,
            request_throughput=len(answers) / duration,
            request_goodput=None if good is None else good / duration,
            output_throughput=outputs / duration,
            total_token_throughput=(inputs + outputs) / duration,
            max_output_tokens_per_s=peak_tokens(answers),
            max_concurrent_requests=peak_requests(outcomes),
            spreads=_spreads(answers, percents),
            failures=dict(Counter(failures).most_common()),
            total_image_tokens=_known_sum([answer.tokens.image for answer in answers]),
            total_tiles=_known_sum([answer.tokens.tiles for answer in answers]),
            server=server,
        )

    def as_json(self) -> dict[str, Any]:
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        spreads, server, failures = found.pop("spreads"), found.pop("server"), found.pop("failures")
        times = {
            f"{what}_{name}_ms": value for name, spread in spreads.items() for what, value in spread.as_json().items()
        }
        return {**found, "rtfx": 0.0, "failures": failures, **times, **server.as_json()}


def peak_tokens(answers: Sequence[RequestOutcome]) -> float:
    """Return the most tokens in one second of the run; those of an answer are spread over its chunks."""
    seconds: defaultdict[int, float] = defaultdict(float)
    for answer in answers:
        times = answer.contents or (answer.latency,)
        for moment in times:
            seconds[int(answer.start + moment)] += answer.output_tokens / len(times)
    return float(max(seconds.values(), default=0))


def peak_requests(outcomes: Sequence[RequestOutcome]) -> int:
    """Return the most requests in flight at one moment, those that failed among them until they had.

    vLLM counts successes alone, and whole seconds, in which many may come and go.
    """
    changes = [(outcome.start, 1) for outcome in outcomes] + [(outcome.ended, -1) for outcome in outcomes]
    return max(accumulate(change for _, change in sorted(changes)), default=0)


def _spreads(answers: Sequence[RequestOutcome], percents: Sequence[float]) -> dict[str, Spread]:
    values: dict[str, list[float]] = {
        "ttft": [answer.first_content for answer in answers],
        "first_chunk": [answer.first_chunk or answer.first_content for answer in answers],
        "tpot": [answer.per_token for answer in answers if answer.per_token is not None],
        "itl": [gap for answer in answers for gap in answer.gaps],
        "e2el": [answer.latency for answer in answers],
        "client_queue_time": [answer.queued for answer in answers],
        "e2el_including_client_queue": [answer.queued + answer.latency for answer in answers],
    }
    return {name: Spread.of(seconds, percents).scaled(1000) for name, seconds in values.items()}


def _known_sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
