"""What signals do to a run: no more lines are asked, those in flight get some time, then they are dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager


class Stop:
    """Of the task that made it. A second signal leaves no time."""

    def __init__(self, patience: float) -> None:
        self.signal: int | None = None
        """The first that came."""
        self.ask_no_more: Callable[[], None] = lambda: None
        self._patience = patience
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()

    def __call__(self, number: int) -> None:
        at_once = self.signal is not None or not self._patience
        self.signal = self.signal or number
        self.ask_no_more()
        assert self._task is not None
        self._loop.call_later(0 if at_once else self._patience, self._task.cancel)

    @contextmanager
    def on(self, signals: Collection[int]) -> Iterator[None]:
        for number in signals:
            self._loop.add_signal_handler(number, self, number)
        try:
            yield
        finally:
            for number in signals:
                self._loop.remove_signal_handler(number)
