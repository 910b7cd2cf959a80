"""Progress bars on standard error, only where a person looks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Bar = bool | Callable[..., Any]
"""Whether a bar is shown, or what makes one: tqdm, or a function of `total` and `desc` that gives something like it."""


@contextmanager
def progress_bar(title: str, total: int, show: Bar = True, of_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """Yields a function that moves the bar by a count; without a terminal there is no bar, unless the caller's."""
    if callable(show):
        bar = show(total=total, desc=title)
        try:
            yield bar.update
        finally:
            bar.close()
        return
    if not show or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TransferSpeedColumn

    counts = (DownloadColumn(), TransferSpeedColumn()) if of_bytes else (MofNCompleteColumn(),)
    columns = (TextColumn("{task.description}"), BarColumn(), *counts)
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)
