"""EngineCore: the engine's loop. One step is plan, launch, commit; with overlap, it commits the step before."""

from __future__ import annotations

import time
from typing import Literal

from tilewise.engine.counters import Counters, EngineLoad
from tilewise.engine.scheduler import Scheduler
from tilewise.errors import EngineStuck
from tilewise.step import Handle, Limits, Runner, StepPlan
from tilewise.timing import Clock
from tilewise.types import Request, SequenceDelta


class EngineCore:
    """An engine that drives a runner with a scheduler's plans. It knows no tensors and no text."""

    def __init__(
        self,
        runner: Runner,
        limits: Limits,
        overlap: bool = False,
        clock: Clock = time.monotonic,
        seed: int | None = None,
    ) -> None:
        """Plan and launch step N + 1 while N runs, if `overlap` is set. No token depends on it.

        Requests without a seed of their own draw from `seed`, in the order in which they come.
        """
        self._runner = runner
        self._scheduler = Scheduler(limits, clock, seed)
        self._overlap = overlap
        self._in_flight: tuple[StepPlan, Handle] | None = None

    @property
    def has_unfinished(self) -> bool:
        return self._scheduler.has_unfinished or self._in_flight is not None

    @property
    def counters(self) -> Counters:
        """A copy of what was counted since the start."""
        return self._scheduler.counters.copy()

    @property
    def load(self) -> EngineLoad:
        return self._scheduler.load

    def submit(self, request: Request) -> None:
        self._scheduler.add(request)

    def abort(self, request_id: str) -> None:
        self._scheduler.abort(request_id)

    def reset(self, cache: Literal["prefix", "tiles"]) -> bool:
        """Empty a cache, as far as running sequences do not use it; return True if all of it is empty now."""
        if cache == "prefix":
            return self._scheduler.kv.pool.forget_all()
        self._scheduler.tiles.forget(used=self.has_unfinished)
        return self._scheduler.tiles.empty

    def step(self) -> list[SequenceDelta]:
        """Compute one step and return new tokens; none when a step only encoded or prefilled.

        With overlap, the tokens are those of the step before, so that the first call returns none.
        """
        plan = self._scheduler.plan()
        # A plan without work is launched as well while tiles are on their way: its step goes on encoding them.
        idle = plan.empty and not self._scheduler.tiles.in_flight
        launched = None if idle else (plan, self._runner.launch(plan))
        # With overlap, step N + 1 has just been planned and launched, and only now is N waited for. That is possible
        # because a plan counts the tokens of steps in flight and never reads them; what N changes in the counts is set
        # right by its commit.
        finished, self._in_flight = (self._in_flight, launched) if self._overlap else (launched, None)
        if finished is None:
            if launched is None and self.has_unfinished:
                raise EngineStuck("No sequence can go on: this is a defect in the scheduler, please report it.")
            return []
        done, wait = finished
        return self._scheduler.commit(done, wait())

    def check(self) -> None:
        """Raise RankDied if a process that computes for this engine is gone."""
        self._runner.check()

    def close(self) -> None:
        if self._in_flight is not None:
            _, wait = self._in_flight
            wait()
            self._in_flight = None
        self._runner.close()
