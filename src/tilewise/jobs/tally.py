"""Counts of results, and the summary that they come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tilewise.jobs.result import Result


@dataclass
class Tally:
    """What is in the output so far."""

    succeeded: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, result: Result) -> None:
        if result.failed:
            self.failed[result.outcome] += 1
        else:
            self.succeeded += 1
        asked, answered = result.tokens
        self.prompt_tokens += asked
        self.completion_tokens += answered

    @property
    def done(self) -> int:
        return self.succeeded + self.failed.total()


@dataclass(frozen=True, slots=True)
class Summary:
    """Of a whole output, whichever runs wrote it; time is that of this run."""

    lines: int
    succeeded: int
    failed: dict[str, int]
    """By status, or by the code of the error."""
    prompt_tokens: int
    completion_tokens: int
    earlier: int
    """Lines that earlier runs had done."""
    seconds: float
    """From the first line asked to the last result written."""

    @classmethod
    def of(cls, tally: Tally, earlier: int, seconds: float) -> Summary:
        failed = dict(sorted(tally.failed.items()))
        tokens = tally.prompt_tokens, tally.completion_tokens
        return cls(tally.done, tally.succeeded, failed, *tokens, earlier, seconds)

    @property
    def lines_per_second(self) -> float:
        return (self.lines - self.earlier) / self.seconds if self.seconds else 0.0

    def text(self) -> Iterator[str]:
        """A line each."""
        before = f", {self.earlier} of them in earlier runs" if self.earlier else ""
        lines = "1 line" if self.lines == 1 else f"{self.lines} lines"
        yield f"{lines}: {self.succeeded} succeeded, {sum(self.failed.values())} failed{before}"
        for outcome, count in self.failed.items():
            yield f"  {outcome:<20} {count}"
        yield f"{self.prompt_tokens} prompt tokens, {self.completion_tokens} answer tokens"
        yield f"{self.seconds:.1f} s, {self.lines_per_second:.1f} lines a second"
