"""What the media of one request may still take, and whether anybody still waits for them."""

from __future__ import annotations

import threading
import time

from tilewise.errors import Cancelled, InvalidMedia
from tilewise.inputs.media_limits import MediaLimits
from tilewise.timing import Clock


class MediaBudget:
    """Travels with the reader of a request. `cancel` may be called from any thread; the rest is the reader's."""

    def __init__(self, limits: MediaLimits = MediaLimits(), cancelled: threading.Event | None = None) -> None:
        self.limits = limits
        self.cancelled = cancelled or threading.Event()
        self._bytes = self._decoded = 0

    def cancel(self) -> None:
        """Nobody waits any more: whatever is being fetched or decoded ends within a fraction of a second."""
        self.cancelled.set()

    def check(self) -> None:
        """Between chunks, frames, redirects and media. Raises Cancelled."""
        if self.cancelled.is_set():
            raise Cancelled("The request was cancelled while its media were read.")

    def take_bytes(self, count: int) -> None:
        """So much of a file has come. Raises InvalidMedia when the request has had more than its share."""
        self.check()
        self._bytes += count
        self._compare(self._bytes, "request_bytes", "bytes", "send fewer or smaller files")

    def take_decoded(self, count: int) -> None:
        """So many bytes of pixels are about to be made."""
        self.check()
        self._decoded += count
        self._compare(self._decoded, "request_decoded_bytes", "bytes of pixels", "send fewer or smaller pictures")

    def _compare(self, total: int, name: str, unit: str, remedy: str) -> None:
        limit = getattr(self.limits, name)
        if total > limit:
            raise InvalidMedia(
                f"The media of this request have {total} {unit} or more, the limit is {limit}: {remedy}, or raise "
                f"{MediaLimits.variable(name)}."
            )


class Deadline:
    """Seconds that one thing may take; whoever works on it asks at every step."""

    def __init__(self, budget: MediaBudget, limit: str, doing: str, remedy: str, clock: Clock = time.monotonic) -> None:
        """`limit` is a field of MediaLimits, `doing` and `remedy` are for the error."""
        self._budget, self._limit, self._doing, self._remedy, self._clock = budget, limit, doing, remedy, clock
        self.seconds: float = getattr(budget.limits, limit)
        self._end: float = clock() + self.seconds

    def left(self) -> float:
        """Always above 0. Raises Cancelled, or InvalidMedia when the time is up."""
        self._budget.check()
        left = self._end - self._clock()
        if left <= 0:
            raise InvalidMedia(
                f"{self._doing} takes longer than {self.seconds:g} s, the limit: {self._remedy}, or raise "
                f"{MediaLimits.variable(self._limit)}."
            )
        return left

    def pause(self, seconds: float) -> None:
        """Wait, unless there is nothing left to wait for."""
        self._budget.cancelled.wait(min(seconds, self.left()))
        self.left()
