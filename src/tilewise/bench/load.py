"""A run: when each request is sent, no more at once than are allowed, and what came of all of them."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

import numpy as np

from tilewise.bench import check_at_least
from tilewise.bench.client import BROKEN, UNREACHABLE, LoadClient
from tilewise.bench.requests import Failure, RequestOutcome
from tilewise.console import Advance
from tilewise.errors import InvalidConfig, TilewiseError


@dataclass(frozen=True, slots=True)
class Ramp:
    """A rate that goes from `start` to `end` requests a second, request by request."""

    strategy: Literal["linear", "exponential"]
    start: float
    end: float

    def __post_init__(self) -> None:
        if not 0 < self.start <= self.end:
            raise InvalidConfig(
                f"--ramp-up-start-rps {self.start:g} and --ramp-up-end-rps {self.end:g}: need 0 < start <= end."
            )

    def rate(self, progress: float) -> float:
        """Return the requests a second at `progress`, which goes from 0, the first request, to 1, the last."""
        if self.strategy == "linear":
            return self.start + (self.end - self.start) * progress
        return float(self.start * (self.end / self.start) ** progress)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """The moments at which the requests of a run are sent.

    Gaps are drawn from a gamma distribution, as vLLM draws them: a burstiness of 1 is a Poisson process, less comes in
    bursts, more comes evenly. At a constant rate the gaps are scaled to last `count / rate` seconds together, so that
    runs of different seeds send equally fast.
    """

    rate: float = math.inf
    """Requests a second; inf = all at once."""
    burstiness: float = 1.0
    ramp: Ramp | None = None

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise InvalidConfig(f"--request-rate must be above 0, got {self.rate:g}: inf sends all at once.")
        if not self.burstiness > 0:
            raise InvalidConfig(f"--burstiness must be above 0, got {self.burstiness:g}: 1 is a Poisson process.")
        if self.ramp and self.rate != math.inf:
            raise InvalidConfig("--request-rate and --ramp-up-strategy exclude each other: the ramp has its own rates.")

    def moments(self, count: int, seed: int) -> list[float]:
        """Return the seconds from the start of the run to each of `count` requests."""
        generator = np.random.default_rng(seed)
        times = list(accumulate(self._gap(self._rate(place, count), generator) for place in range(count)))
        if self.ramp or not times or times[-1] == 0:
            return times
        scale = count / self.rate / times[-1]
        return [moment * scale for moment in times]

    def _rate(self, place: int, count: int) -> float:
        return self.ramp.rate(place / max(count - 1, 1)) if self.ramp else self.rate

    def _gap(self, rate: float, generator: np.random.Generator) -> float:
        if math.isinf(rate):
            return 0.0
        if math.isinf(self.burstiness):
            return 1 / rate
        return float(generator.gamma(self.burstiness, 1 / (rate * self.burstiness)))


_RETRY = 1.0  # seconds between two tries of a server that is not ready


class NotReady(TilewiseError):
    """The server does not answer a first request."""


@dataclass(frozen=True)
class LoadLevel:
    arrivals: Arrivals = field(default_factory=Arrivals)
    concurrency: int | None = None
    """Most requests at once; None = as many as come."""
    seed: int = 0
    id_prefix: str = "bench-"

    def __post_init__(self) -> None:
        if self.concurrency is not None:
            check_at_least(1, max_concurrency=self.concurrency)

    @property
    def name(self) -> str:
        """The load as names of files have it, such as `1.0qps-concurrency8`."""
        ramp = self.arrivals.ramp
        rate = f"ramp-up-{ramp.strategy}-{ramp.start:g}qps-{ramp.end:g}" if ramp else f"{self.arrivals.rate}"
        return f"{rate}qps" if self.concurrency is None else f"{rate}qps-concurrency{self.concurrency}"


@dataclass(frozen=True)
class LoadResult:
    answers: list[RequestOutcome]
    duration: float


async def run_load(client: LoadClient, bodies: Sequence[bytes], load: LoadLevel, advance: Advance) -> LoadResult:
    """Send requests, and return an outcome of each. Once the server is gone, the rest is not sent, and the run ends."""
    run = _LoadRun(client, load, advance)
    moments = load.arrivals.moments(len(bodies), load.seed)
    tasks = []
    for number, (body, moment) in enumerate(zip(bodies, moments, strict=True)):
        await run.wait_until(moment)
        tasks.append(asyncio.create_task(run.one(body, f"{load.id_prefix}{number}")))
    answers = await asyncio.gather(*tasks)
    return LoadResult(answers, run.now())


class _LoadRun:
    """One run under way. It owns the clock of the run, and knows whether its server is gone."""

    def __init__(self, client: LoadClient, load: LoadLevel, advance: Advance) -> None:
        self._client, self._advance = client, advance
        self._places = asyncio.Semaphore(load.concurrency) if load.concurrency else contextlib.nullcontext()
        self._gone = asyncio.Event()
        self._began = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._began

    async def wait_until(self, moment: float) -> None:
        left = moment - self.now()
        if left > 0 and not self._gone.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), left)

    async def one(self, body: bytes, request_id: str) -> RequestOutcome:
        came = self.now()
        async with self._places:
            answer = await self._answer(body, request_id, self.now() - came)
        self._advance(1)
        return answer

    async def _answer(self, body: bytes, request_id: str, queued: float) -> RequestOutcome:
        if self._gone.is_set():
            return RequestOutcome(self.now(), queued, failure=Failure("not sent", "the server was gone"))
        answer = await self._client.send(body, request_id, self._began, queued)
        lost = answer.failure is not None and answer.failure.kind in (UNREACHABLE, BROKEN)
        if lost and not self._gone.is_set() and await self._client.is_gone():
            self._gone.set()
        return answer


async def wait_until_ready(client: LoadClient, body: bytes, request_id: str, seconds: float) -> None:
    """Send a request again and again until it is answered. Raises NotReady after `seconds`."""
    ends = time.monotonic() + seconds
    while True:
        answer = await client.send(body, request_id, time.perf_counter())
        if answer.failure is None:
            return
        if time.monotonic() + _RETRY > ends:
            raise NotReady(
                f"{client.target.url}{client.target.endpoint} did not answer a first request within {seconds:g} s "
                f"(--ready-check-timeout-sec): {answer.failure}"
            )
        await asyncio.sleep(_RETRY)


async def warm_up(client: LoadClient, body: bytes, load: LoadLevel, count: int, advance: Advance) -> None:
    """Send one request `count` times, all at once below the limit of concurrency; it is no part of the figures."""
    everything = LoadLevel(Arrivals(), load.concurrency, load.seed, f"{load.id_prefix}warmup-")
    await run_load(client, [body] * count, everything, advance)
