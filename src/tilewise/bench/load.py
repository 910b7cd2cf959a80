"""A run: requests sent when their time comes, no more at once than are allowed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tilewise.bench.answers import Answer
from tilewise.bench.arrivals import Arrivals
from tilewise.bench.client import BROKEN, UNREACHABLE, LoadClient, not_sent
from tilewise.errors import InvalidConfig, TilewiseError

_RETRY = 1.0  # seconds between two tries of a server that is not ready


class NotReady(TilewiseError):
    """The server does not answer a first request."""


@dataclass(frozen=True)
class Load:
    arrivals: Arrivals = field(default_factory=Arrivals)
    concurrency: int | None = None
    """Most requests at once; None = as many as come."""
    seed: int = 0
    id_prefix: str = "bench-"

    def __post_init__(self) -> None:
        if self.concurrency is not None and self.concurrency < 1:
            raise InvalidConfig(f"--max-concurrency must be at least 1, got {self.concurrency}.")


@dataclass(frozen=True)
class Ran:
    answers: list[Answer]
    duration: float


async def run_load(client: LoadClient, bodies: Sequence[bytes], load: Load, advance: Callable[[int], None]) -> Ran:
    """Every request has an answer. Once the server is gone, those that are left are not sent, and the run ends."""
    run = _Run(client, load, advance)
    moments = load.arrivals.moments(len(bodies), load.seed)
    tasks = []
    for number, (body, moment) in enumerate(zip(bodies, moments, strict=True)):
        await run.wait_until(moment)
        tasks.append(asyncio.create_task(run.one(body, f"{load.id_prefix}{number}")))
    answers = await asyncio.gather(*tasks)
    return Ran(answers, run.now())


class _Run:
    """Owns the clock of a run, and whether its server is gone."""

    def __init__(self, client: LoadClient, load: Load, advance: Callable[[int], None]) -> None:
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

    async def one(self, body: bytes, request_id: str) -> Answer:
        came = self.now()
        async with self._places:
            answer = await self._answer(body, request_id, self.now() - came)
        self._advance(1)
        return answer

    async def _answer(self, body: bytes, request_id: str, queued: float) -> Answer:
        if self._gone.is_set():
            return not_sent(self.now(), queued)
        answer = await self._client.send(body, request_id, self._began, queued)
        lost = answer.failure is not None and answer.failure.kind in (UNREACHABLE, BROKEN)
        if lost and not self._gone.is_set() and await self._client.is_gone():
            self._gone.set()
        return answer


async def wait_until_ready(client: LoadClient, body: bytes, request_id: str, seconds: float) -> None:
    """Until a request is answered. Raises NotReady."""
    ends = time.monotonic() + seconds
    while True:
        answer = await client.send(body, request_id, time.perf_counter())
        if answer.failure is None:
            return
        if time.monotonic() + _RETRY > ends:
            failure = answer.failure
            raise NotReady(
                f"{client.target.url}{client.target.endpoint} did not answer a first request within {seconds:g} s "
                f"(--ready-check-timeout-sec): {failure.kind}: {failure.text}"
            )
        await asyncio.sleep(_RETRY)


async def warm_up(
    client: LoadClient, body: bytes, load: Load, count: int, advance: Callable[[int], None]
) -> list[Answer]:
    """The first request, so many times, all at once below the limit of concurrency; no part of the figures."""
    everything = Load(Arrivals(), load.concurrency, load.seed, f"{load.id_prefix}warmup-")
    return (await run_load(client, [body] * count, everything, advance)).answers
