"""EngineCore: the loop. One step is plan, launch, commit."""

from __future__ import annotations

from tilewise.engine.scheduler import Scheduler, TokenDelta
from tilewise.errors import EngineStuck
from tilewise.step import Limits, Runner
from tilewise.types import Request


class EngineCore:
    """Drives a runner with a scheduler's plans. Knows no tensors and no text."""

    def __init__(self, runner: Runner, limits: Limits) -> None:
        self._runner = runner
        self._scheduler = Scheduler(limits)

    @property
    def has_unfinished(self) -> bool:
        return self._scheduler.has_unfinished

    def submit(self, request: Request) -> None:
        self._scheduler.add(request)

    def abort(self, request_id: str) -> None:
        self._scheduler.abort(request_id)

    def step(self) -> list[TokenDelta]:
        """Compute one step and return its new tokens; none when a step only encoded or prefilled."""
        plan = self._scheduler.plan()
        if plan.empty:
            if self.has_unfinished:
                raise EngineStuck("No sequence can go on: this is a defect in the scheduler, please report it.")
            return []
        handle = self._runner.launch(plan)
        return self._scheduler.commit(plan, handle.wait())

    def close(self) -> None:
        self._runner.close()
