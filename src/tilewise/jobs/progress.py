"""Progress of a run: the counts of its results, and the bar or the log lines that show them."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tilewise.jobs.output import BatchResult


@dataclass
class Summary:
    """The counts of a whole output, whichever runs wrote it, and the time of this run."""

    succeeded: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """Failed lines by status, or by the code of the error."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    earlier: int = 0
    """Lines that earlier runs had done."""
    seconds: float = 0.0
    """Seconds from the first line asked to the last result written."""

    def add(self, result: BatchResult) -> None:
        if result.failed:
            self.failed[result.outcome] += 1
        else:
            self.succeeded += 1
        asked, answered = result.tokens
        self.prompt_tokens += asked
        self.completion_tokens += answered

    @property
    def lines(self) -> int:
        return self.succeeded + self.failed.total()

    @property
    def lines_per_second(self) -> float:
        return (self.lines - self.earlier) / self.seconds if self.seconds else 0.0

    def text(self) -> Iterator[str]:
        """Yield the summary line by line."""
        before = f", {self.earlier} of them in earlier runs" if self.earlier else ""
        lines = "1 line" if self.lines == 1 else f"{self.lines} lines"
        yield f"{lines}: {self.succeeded} succeeded, {self.failed.total()} failed{before}"
        for outcome, count in sorted(self.failed.items()):
            yield f"  {outcome:<20} {count}"
        yield f"{self.prompt_tokens} prompt tokens, {self.completion_tokens} answer tokens"
        yield f"{self.seconds:.1f} s, {self.lines_per_second:.1f} lines a second"


logger = logging.getLogger("tilewise")
_BETWEEN = 30.0  # seconds between log lines
_LOOK = 0.2  # seconds between updates of the bar


@contextmanager
def meter(summary: Summary, lines: int) -> Iterator[Callable[[], None]]:
    """Show progress, and yield a function to be called after each result that `summary` has counted."""
    if sys.stderr.isatty():
        with _bar(summary, lines) as moved:
            yield moved
    else:
        yield _log(summary, lines)


def _log(summary: Summary, lines: int) -> Callable[[], None]:
    begin, before = time.monotonic(), summary.lines
    last = begin

    def moved() -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _BETWEEN:
            last, done = now, summary.lines
            rate = (done - before) / (now - begin)
            left, failed = f"{(lines - done) / rate:.0f} s left", summary.failed.total()
            logger.info("%d of %d lines done, %d failed, %.1f lines/s, %s", done, lines, failed, rate, left)

    return moved


@contextmanager
def _bar(summary: Summary, lines: int) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    about = TextColumn("{task.fields[rate]:.1f} lines/s, {task.fields[failed]} failed")
    columns = (TextColumn("Answering"), BarColumn(), MofNCompleteColumn(), about, TimeRemainingColumn())
    begin, before = time.monotonic(), summary.lines
    last = 0.0
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress, _above_the_bar():
        task = progress.add_task("", total=lines, completed=before, rate=0.0, failed=summary.failed.total())

        def moved() -> None:
            nonlocal last
            now, done = time.monotonic(), summary.lines
            if now - last >= _LOOK or done == lines:
                last, rate = now, (done - before) / max(now - begin, 1e-9)
                progress.update(task, completed=done, rate=rate, failed=summary.failed.total())

        yield moved


@contextmanager
def _above_the_bar() -> Iterator[None]:
    """Send log lines to the standard error that the bar has put in place, which writes them above the bar."""
    handlers = [item for item in logging.getLogger().handlers if type(item) is logging.StreamHandler]
    before = [handler.setStream(sys.stderr) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in zip(handlers, before, strict=True):
            if stream is not None:
                handler.setStream(stream)
