"""Where a request's time goes. All in seconds; moments are on the monotonic clock.

arrival -> media are fetched, decoded and cut -> queued -> scheduled -> first token -> finished
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class MediaCounts:
    """What the media of a request came to."""

    downloads: int = 0
    """Media fetched, wherever their URLs pointed."""
    download_bytes: int = 0
    failures: int = 0
    """Media that could not be fetched, or not be read."""
    pictures: int = 0
    videos: int = 0
    frames: int = 0
    """Chosen from videos."""


@dataclass(frozen=True, slots=True)
class InputTiming:
    """What a request's inputs took before the engine saw it."""

    download: float = 0.0
    """Fetching media, from wherever their URLs point."""
    decode: float = 0.0
    """Files to pixels."""
    preprocess: float = 0.0
    """Cutting pictures, template and tokenizer."""
    media: MediaCounts = MediaCounts()

    @property
    def total(self) -> float:
        return self.download + self.decode + self.preprocess


class Stopwatch:
    """Adds up what the media of one request take, and counts them; what fails takes time as well."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._download = self._decode = 0.0
        self.counts = MediaCounts()

    @contextmanager
    def downloading(self) -> Iterator[None]:
        started = self._clock()
        try:
            with self._failing():
                yield
        finally:
            self._download += self._clock() - started

    @contextmanager
    def decoding(self) -> Iterator[None]:
        started = self._clock()
        try:
            with self._failing():
                yield
        finally:
            self._decode += self._clock() - started

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self.count(failures=1)
            raise

    def count(self, **more: int) -> None:
        """Add to fields of MediaCounts."""
        self.counts = replace(self.counts, **{name: getattr(self.counts, name) + by for name, by in more.items()})

    @property
    def timing(self) -> InputTiming:
        return InputTiming(self._download, self._decode, media=self.counts)


@dataclass(frozen=True, slots=True)
class EngineMoments:
    """A sequence's way through the engine up to its first token; None = not reached, or not needed."""

    queued: float
    wanted: float | None = None
    """It was looked at for the first time and a tile that it needs was not encoded."""
    encoded: float | None = None
    """The last of its tiles was."""
    scheduled: float | None = None
    """Its first tokens were planned; once, whatever preemptions follow."""
    first_token: float | None = None

    @property
    def encode(self) -> float:
        """Its wait for tiles, which lies within its time in the queue and its prefill."""
        if self.wanted is None:
            return 0.0
        # Another request may have computed the same prompt meanwhile: then it went on without them.
        end = self.encoded if self.encoded is not None else self.scheduled
        return 0.0 if end is None else max(0.0, end - self.wanted)


@dataclass(frozen=True, slots=True)
class Timing:
    """A request's life so far; None = not reached. vLLM's histograms are its properties."""

    arrival: float
    """When it came, before its media were fetched."""
    first_token: float | None = None
    finished: float | None = None
    inputs: InputTiming = InputTiming()
    engine: EngineMoments | None = None
    """Of its first sequence to answer, from its first token on."""
    preemptions: int = 0
    """How often its sequences gave their blocks back, to be computed again later."""

    @property
    def time_to_first_token(self) -> float | None:
        return _between(self.arrival, self.first_token)

    @property
    def queue(self) -> float | None:
        """From its arrival in the engine to its first planned work."""
        return _between(self.engine.queued, self.engine.scheduled) if self.engine else None

    @property
    def encode(self) -> float | None:
        """Waiting for tiles, within `queue` and `prefill`."""
        return self.engine.encode if self.engine else None

    @property
    def prefill(self) -> float | None:
        """From its first planned work to the first token."""
        return _between(self.engine.scheduled, self.first_token) if self.engine else None

    @property
    def decode(self) -> float | None:
        """From the first token to the last."""
        return _between(self.first_token, self.finished)

    @property
    def inference(self) -> float | None:
        return _between(self.engine.scheduled, self.finished) if self.engine else None

    @property
    def total(self) -> float | None:
        """From end to end."""
        return _between(self.arrival, self.finished)


def _between(start: float | None, stop: float | None) -> float | None:
    return None if start is None or stop is None else stop - start
