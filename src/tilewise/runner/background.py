"""BackgroundRunner: steps in a thread of their own, so that the host plans and delivers meanwhile."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from tilewise.step import Runner, StepPlan, StepResult


@dataclass(frozen=True, slots=True)
class PendingStep:
    """A handle on a step that may not have begun. What goes wrong in it is raised by `wait`."""

    result: Future[StepResult]

    def wait(self) -> StepResult:
        return self.result.result()


class BackgroundRunner:
    """Another runner's steps, one after the other in the order of their launch.

    A plan may therefore count on what the plans before it leave behind, though nobody has waited for them: tokens in
    the tables, keys and values in blocks, rows in pages.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tilewise-runner")

    def launch(self, plan: StepPlan) -> PendingStep:
        return PendingStep(self._thread.submit(self._run, plan))

    def _run(self, plan: StepPlan) -> StepResult:
        return self._runner.launch(plan).wait()

    def check(self) -> None:
        self._runner.check()

    def close(self) -> None:
        self._thread.shutdown()
        self._runner.close()
