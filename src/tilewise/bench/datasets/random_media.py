"""Random pictures and videos for requests, in sizes drawn by weight.

The pixels are noise: the worst case for a codec, and no two pictures share a tile.
"""

from __future__ import annotations

import ast
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tilewise.bench.requests import Media, SampleRequest
from tilewise.errors import InvalidConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FRAMES_PER_SECOND = 30


@dataclass(frozen=True, slots=True)
class Bucket:
    """Media of one size; with one frame they are pictures."""

    height: int
    width: int
    frames: int
    weight: float

    @property
    def kind(self) -> str:
        return "image" if self.frames == 1 else "video"


DEFAULT_BUCKETS = (Bucket(256, 256, 1, 0.5), Bucket(720, 1280, 1, 0.5), Bucket(720, 1280, 16, 0.0))


@dataclass(frozen=True)
class MediaShape:
    """The number of media that a request has, and their sizes."""

    items: int = 1
    spread: float = 0.0
    """A spread of r draws the number of media evenly from [n(1-r), n(1+r)], where n is `items`."""
    limits: dict[str, int] = field(default_factory=lambda: {"image": 255, "video": 1})
    buckets: tuple[Bucket, ...] = DEFAULT_BUCKETS

    def __post_init__(self) -> None:
        if self.items < 0 or not 0 <= self.spread <= 1:
            raise InvalidConfig(
                f"--random-mm-base-items-per-request {self.items} must be at least 0, and "
                f"--random-mm-num-mm-items-range-ratio {self.spread:g} from 0 to 1."
            )
        if not self.used:
            raise InvalidConfig("--random-mm-bucket-config has no bucket above 0: give one a probability.")
        if missing := {bucket.kind for bucket in self.used} - set(self.limits):
            raise InvalidConfig(f"--random-mm-limit-mm-per-prompt does not say how many of: {', '.join(missing)}.")
        if self.bounds[0] > self.bounds[1]:
            raise InvalidConfig(
                f"--random-mm-limit-mm-per-prompt allows {self.bounds[1]} media a request and "
                f"--random-mm-base-items-per-request asks for {self.bounds[0]}: raise the one or lower the other."
            )

    @property
    def used(self) -> list[Bucket]:
        return [bucket for bucket in self.buckets if bucket.weight > 0]

    @property
    def bounds(self) -> tuple[int, int]:
        """Fewest and most media of a request."""
        allowed = sum(self.limits[kind] for kind in {bucket.kind for bucket in self.used})
        return math.floor(self.items * (1 - self.spread)), min(allowed, math.ceil(self.items * (1 + self.spread)))

    def draw(self, generator: np.random.Generator) -> Iterator[Bucket]:
        """Draw the media of one request. A kind that has reached its limit is drawn no more."""
        left = dict(self.limits)
        for _ in range(int(generator.integers(self.bounds[0], self.bounds[1] + 1))):
            open_ = [bucket for bucket in self.used if left[bucket.kind] > 0]
            weights = np.array([bucket.weight for bucket in open_])
            bucket = open_[int(generator.choice(len(open_), p=weights / weights.sum()))]
            left[bucket.kind] -= 1
            yield bucket


def with_media(
    requests: Sequence[SampleRequest], shape: MediaShape, generator: np.random.Generator
) -> Iterator[SampleRequest]:
    for request in requests:
        yield replace(request, media=tuple(_media(bucket, generator) for bucket in shape.draw(generator)))


def _media(bucket: Bucket, generator: np.random.Generator) -> Media:
    pixels = generator.integers(0, 256, (bucket.frames, bucket.height, bucket.width, 3), np.uint8)
    if bucket.kind == "video":
        return Media.of("video", _mp4(pixels), "video/mp4")
    found = io.BytesIO()
    Image.fromarray(pixels[0]).save(found, "JPEG", quality=95)
    return Media.of("image", found.getvalue(), "image/jpeg")


def _mp4(frames: NDArray[np.uint8]) -> bytes:
    import av

    found = io.BytesIO()
    with av.open(found, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=_FRAMES_PER_SECOND)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return found.getvalue()


def read_buckets(text: str) -> tuple[Bucket, ...]:
    """Read `{(256, 256, 1): 0.5, (720, 1280, 1): 0.5}`: height, width, frames, probability. Raises InvalidConfig."""
    try:
        found = ast.literal_eval(text)
        buckets = tuple(_bucket(key, weight) for key, weight in found.items())
    except (ValueError, SyntaxError, TypeError, AttributeError):
        raise InvalidConfig(
            f"--random-mm-bucket-config is like '{{(256, 256, 1): 0.5, (720, 1280, 1): 0.5}}', keys are height, width "
            f"and frames, got {text!r}."
        ) from None
    return buckets


def _bucket(key: Any, weight: Any) -> Bucket:
    height, width, frames = (int(number) for number in (ast.literal_eval(key) if isinstance(key, str) else key))
    if min(height, width, frames) < 1 or float(weight) < 0:
        raise ValueError
    return Bucket(height, width, frames, float(weight))
