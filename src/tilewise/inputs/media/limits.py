"""Limits of a request's media: how much it may bring, how long they may take, and what is left of that."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tilewise.environment import MAX_FRAMES as MAX_FRAMES
from tilewise.environment import Environment, Variable
from tilewise.errors import Cancelled, InvalidMedia
from tilewise.timing import Clock

ALL_FRAMES = -1
"""The `num_frames` that asks for every frame of a video, up to what is allowed."""
_MIB = 2**20


def _limit(default: float, variable: Variable[float | None], unit: int = 1) -> Any:
    """Declare a limit that a variable of the environment sets, in `unit`s."""
    return dataclasses.field(default=default, metadata={"variable": variable, "unit": unit})


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """Limits of one file, and of all media of one request. Limits of a picture are in `ImageLimits`."""

    file_bytes: int = _limit(256 * _MIB, Environment.media_file_mib, _MIB)
    request_bytes: int = _limit(256 * _MIB, Environment.media_request_mib, _MIB)
    request_decoded_bytes: int = _limit(715_827_880, Environment.media_decoded_bytes)
    """Bytes of pixels as Pillow keeps them: four a pixel unless it is grey."""
    image_seconds: float = _limit(5.0, Environment.image_seconds)
    """Seconds of a fetch from the first look-up to the last byte, redirects and retries included."""
    video_seconds: float = _limit(30.0, Environment.video_seconds)
    retries: int = _limit(3, Environment.media_retries)
    video_frames: int = _limit(36_000, Environment.video_frames)
    """Frames that a file may have, however few of them are chosen."""
    chosen_frames: int = _limit(MAX_FRAMES, Environment.chosen_frames)
    """Frames that are taken of one video, whatever the request asks for."""
    decode_seconds: float = _limit(60.0, Environment.decode_seconds)
    """Seconds that decoding one video may take."""
    handle_bytes: int = _limit(256 * _MIB, Environment.media_handles_mib, _MIB)
    """Bytes of files, of all requests together, that are kept under their `uuid`; 0 = none."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> MediaLimits:
        """Return the defaults, changed by variables that are set. Raises InvalidConfig for one of another form."""
        changes: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            value = field.metadata["variable"].value(environment)
            if value is not None:
                changes[field.name] = value * field.metadata["unit"]
        return cls(**changes)

    @classmethod
    def variable(cls, name: str) -> str:
        """Return the name of the environment variable that raises a limit."""
        return next(str(field.metadata["variable"].name) for field in dataclasses.fields(cls) if field.name == name)


class MediaBudget:
    """The bytes that the media of one request have taken, held to their limits.

    `cancel` may be called from any thread; all else belongs to the thread that reads the request.
    """

    def __init__(self, limits: MediaLimits = MediaLimits(), cancelled: threading.Event | None = None) -> None:
        self.limits = limits
        self.cancelled = cancelled or threading.Event()
        self.bytes_taken = self.decoded_taken = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel with what was taken. Whether the request is given up is not known elsewhere."""
        return MediaBudget, (self.limits,), {"bytes_taken": self.bytes_taken, "decoded_taken": self.decoded_taken}

    def cancel(self) -> None:
        """Give the request up: whatever is being fetched or decoded ends within a fraction of a second."""
        self.cancelled.set()

    def check(self) -> None:
        """Raise Cancelled if the request was given up; called between chunks, frames, redirects and media."""
        if self.cancelled.is_set():
            raise Cancelled("The request was cancelled while its media were read.")

    def take_bytes(self, count: int) -> None:
        """Count bytes of a file that have come. Raises InvalidMedia when the request has had more than its share."""
        self.check()
        self.bytes_taken += count
        self._compare(self.bytes_taken, "request_bytes", "bytes", "send fewer or smaller files")

    def take_decoded(self, count: int) -> None:
        """Count bytes of pixels before they are made. Raises InvalidMedia for more than the request may have."""
        self.check()
        self.decoded_taken += count
        self._compare(self.decoded_taken, "request_decoded_bytes", "bytes of pixels", "send fewer or smaller pictures")

    def _compare(self, total: int, name: str, unit: str, remedy: str) -> None:
        limit = getattr(self.limits, name)
        if total > limit:
            raise InvalidMedia(
                f"The media of this request have {total} {unit} or more, the limit is {limit}: {remedy}, or raise "
                f"{MediaLimits.variable(name)}."
            )


class Deadline:
    """The time that one fetch or decoding may take; whoever works on it asks at every step what is left."""

    def __init__(self, budget: MediaBudget, limit: str, doing: str, remedy: str, clock: Clock = time.monotonic) -> None:
        """`limit` is a field of MediaLimits, `doing` and `remedy` are for the error."""
        self._budget, self._limit, self._doing, self._remedy, self._clock = budget, limit, doing, remedy, clock
        self.seconds: float = getattr(budget.limits, limit)
        self._end: float = clock() + self.seconds

    def left(self) -> float:
        """Return the seconds left, always above 0. Raises Cancelled, or InvalidMedia when the time is up."""
        self._budget.check()
        left = self._end - self._clock()
        if left <= 0:
            raise InvalidMedia(
                f"{self._doing} takes longer than {self.seconds:g} s, the limit: {self._remedy}, or raise "
                f"{MediaLimits.variable(self._limit)}."
            )
        return left

    def pause(self, seconds: float) -> None:
        """Wait. Raises Cancelled or InvalidMedia as soon as there is nothing left to wait for."""
        self._budget.cancelled.wait(min(seconds, self.left()))
        self.left()
