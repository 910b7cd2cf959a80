"""Progress bars on standard error, only where a person looks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

Bar = bool | Callable[..., Any]
"""True or False for a bar or none, or what makes one: tqdm, or a function of `total` and `desc` that is like it."""
Advance = Callable[[int], None]
"""A function that moves a bar by a count."""


@dataclass(frozen=True, slots=True)
class TrackedWork:
    """Work that a bar shows, in pieces or `of_bytes`."""

    title: str
    total: int
    of_bytes: bool = False


@contextmanager
def progress_bar(title: str, total: int, show: Bar = True, of_bytes: bool = False) -> Iterator[Advance]:
    """Yield a function that moves the bar by a count; without a terminal there is no bar, unless the caller's."""
    with progress_bars(TrackedWork(title, total, of_bytes), show=show) as (advance,):
        yield advance


@contextmanager
def progress_bars(*works: TrackedWork, show: Bar = True) -> Iterator[list[Advance]]:
    """Yield a function for each of several bars, which are shown one below the other."""
    if callable(show):
        with ExitStack() as close:
            bars = [show(total=work.total, desc=work.title) for work in works]
            for bar in bars:
                close.callback(bar.close)
            yield [bar.update for bar in bars]
        return
    if not show or not sys.stderr.isatty():
        yield [lambda _: None for _ in works]
        return
    from rich.console import Console, Group
    from rich.live import Live

    console = Console(stderr=True)
    rows = [_row(work, console) for work in works]
    with Live(Group(*(row for row, _ in rows)), console=console, transient=True):
        yield [advance for _, advance in rows]


def _row(work: TrackedWork, console: Any) -> tuple[Any, Advance]:
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TransferSpeedColumn

    counts = (DownloadColumn(), TransferSpeedColumn()) if work.of_bytes else (MofNCompleteColumn(),)
    row = Progress(TextColumn("{task.description}"), BarColumn(), *counts, console=console)
    task = row.add_task(work.title, total=work.total)
    return row, lambda count: row.advance(task, count)
