"""The times of a request: where they go. All are in seconds; moments are on the monotonic clock.

arrival -> media are fetched, decoded and cut -> queued -> scheduled -> first token -> finished
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class MediaCounts:
    """Counts of a request's media."""

    downloads: int = 0
    """Media fetched, wherever their URLs pointed."""
    download_bytes: int = 0
    failures: int = 0
    """Media that could not be fetched, or not be read."""
    pictures: int = 0
    videos: int = 0
    frames: int = 0
    """Frames chosen from videos."""


@dataclass(frozen=True, slots=True)
class InputTiming:
    """Seconds that a request's inputs took before the engine saw it."""

    download: float = 0.0
    """Seconds of fetching media, wherever their URLs point."""
    decode: float = 0.0
    """Seconds of turning files into pixels."""
    preprocess: float = 0.0
    """Seconds of cutting pictures, and of template and tokenizer."""
    media: MediaCounts = MediaCounts()

    @property
    def total(self) -> float:
        return self.download + self.decode + self.preprocess


class Stopwatch:
    """A stopwatch that adds up what the media of one request take, and counts them; what fails takes time as well."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._seconds = {"download": 0.0, "decode": 0.0}
        self.counts = MediaCounts()

    def downloading(self) -> AbstractContextManager[None]:
        return self._measuring("download")

    def decoding(self) -> AbstractContextManager[None]:
        return self._measuring("decode")

    @contextmanager
    def _measuring(self, stage: str) -> Iterator[None]:
        started = self._clock()
        try:
            yield
        except Exception:
            self.count(failures=1)
            raise
        finally:
            self._seconds[stage] += self._clock() - started

    def took(self, decode: float) -> None:
        """Add seconds of decoding that were measured elsewhere."""
        self._seconds["decode"] += decode

    def count(self, **more: int) -> None:
        """Add to fields of MediaCounts."""
        self.counts = replace(self.counts, **{name: getattr(self.counts, name) + by for name, by in more.items()})

    @property
    def timing(self) -> InputTiming:
        return InputTiming(**self._seconds, media=self.counts)


@dataclass(frozen=True, slots=True)
class EngineMoments:
    """A sequence's way through the engine up to its first token; None = not reached, or not needed."""

    queued: float
    wanted: float | None = None
    """Moment at which the scheduler first found that a tile it needs was not encoded."""
    encoded: float | None = None
    """Moment at which the last of its tiles was encoded."""
    scheduled: float | None = None
    """Moment at which its first tokens were planned; set once, whatever preemptions follow."""
    first_token: float | None = None

    @property
    def encode(self) -> float:
        """Seconds of waiting for tiles, which lie within its time in the queue and its prefill."""
        if self.wanted is None:
            return 0.0
        # Another request may have computed the same prompt meanwhile: then it went on without them.
        end = self.encoded if self.encoded is not None else self.scheduled
        return 0.0 if end is None else max(0.0, end - self.wanted)


@dataclass(frozen=True, slots=True)
class Timing:
    """The moments of a request so far; None = not reached. Its properties are the durations in vLLM's histograms."""

    arrival: float
    """Moment at which it came, before its media were fetched."""
    first_token: float | None = None
    finished: float | None = None
    inputs: InputTiming = InputTiming()
    engine: EngineMoments | None = None
    """Moments of its first sequence to answer; None before the first token."""
    preemptions: int = 0
    """Times that its sequences gave their blocks back, to be computed again later."""

    @property
    def time_to_first_token(self) -> float | None:
        return _between(self.arrival, self.first_token)

    @property
    def queue(self) -> float | None:
        """Seconds from its arrival in the engine to its first planned work."""
        return _between(self.engine.queued, self.engine.scheduled) if self.engine else None

    @property
    def encode(self) -> float | None:
        """Seconds of waiting for tiles, within `queue` and `prefill`."""
        return self.engine.encode if self.engine else None

    @property
    def prefill(self) -> float | None:
        """Seconds from its first planned work to the first token."""
        return _between(self.engine.scheduled, self.first_token) if self.engine else None

    @property
    def decode(self) -> float | None:
        """Seconds from the first token to the last."""
        return _between(self.first_token, self.finished)

    @property
    def inference(self) -> float | None:
        return _between(self.engine.scheduled, self.finished) if self.engine else None

    @property
    def total(self) -> float | None:
        """Seconds from its arrival to its end."""
        return _between(self.arrival, self.finished)


_WALL = time.time() - time.monotonic()


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """A request's times under vLLM's names, those of RequestMetrics (0.10) and of RequestStateStats (0.33).

    Names in `_time` are moments of the wall clock, those in `_ts` of the monotonic one; None = not reached.
    """

    arrival_time: float
    first_scheduled_time: float | None
    first_token_time: float | None
    last_token_time: float | None
    finished_time: float | None
    time_in_queue: float | None
    queued_ts: float | None
    scheduled_ts: float | None
    first_token_ts: float | None
    last_token_ts: float | None
    first_token_latency: float | None
    num_generation_tokens: int
    num_preemptions: int
    scheduler_time: None = None
    model_forward_time: None = None
    model_execute_time: None = None
    is_corrupted: bool = False

    @classmethod
    def of(cls, timing: Timing, generated: int) -> RequestMetrics:
        scheduled = timing.engine.scheduled if timing.engine else None
        return cls(
            timing.arrival + _WALL,
            _wall(scheduled),
            _wall(timing.first_token),
            _wall(timing.finished),
            _wall(timing.finished),
            timing.queue,
            timing.engine.queued if timing.engine else None,
            scheduled,
            timing.first_token,
            timing.finished,
            timing.time_to_first_token,
            generated,
            timing.preemptions,
        )


def _wall(moment: float | None) -> float | None:
    return None if moment is None else moment + _WALL


def _between(start: float | None, stop: float | None) -> float | None:
    return None if start is None or stop is None else stop - start
