"""How a run gets on: a bar where a person looks, else a line in the log every half minute."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tilewise.jobs.tally import Tally

logger = logging.getLogger("tilewise")
_BETWEEN = 30.0  # seconds between lines
_LOOK = 0.2  # seconds between looks at what to show


@contextmanager
def meter(tally: Tally, lines: int) -> Iterator[Callable[[], None]]:
    """Yields a function to be called after each result that `tally` has counted."""
    if sys.stderr.isatty():
        with _bar(tally, lines) as moved:
            yield moved
    else:
        yield _log(tally, lines)


def _log(tally: Tally, lines: int) -> Callable[[], None]:
    begin, before = time.monotonic(), tally.done
    last = begin

    def moved() -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _BETWEEN:
            last, rate = now, (tally.done - before) / (now - begin)
            left = f"{(lines - tally.done) / rate:.0f} s left"
            failed = tally.failed.total()
            logger.info("%d of %d lines done, %d failed, %.1f lines/s, %s", tally.done, lines, failed, rate, left)

    return moved


@contextmanager
def _bar(tally: Tally, lines: int) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    about = TextColumn("{task.fields[rate]:.1f} lines/s, {task.fields[failed]} failed")
    columns = (TextColumn("Answering"), BarColumn(), MofNCompleteColumn(), about, TimeRemainingColumn())
    begin, before = time.monotonic(), tally.done
    last = 0.0
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress, _above_the_bar():
        task = progress.add_task("", total=lines, completed=before, rate=0.0, failed=tally.failed.total())

        def moved() -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _LOOK or tally.done == lines:
                last, rate = now, (tally.done - before) / max(now - begin, 1e-9)
                progress.update(task, completed=tally.done, rate=rate, failed=tally.failed.total())

        yield moved


@contextmanager
def _above_the_bar() -> Iterator[None]:
    """Log lines go where the bar has put standard error, which writes them above it."""
    handlers = [item for item in logging.getLogger().handlers if type(item) is logging.StreamHandler]
    before = [handler.setStream(sys.stderr) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in zip(handlers, before, strict=True):
            if stream is not None:
                handler.setStream(stream)
