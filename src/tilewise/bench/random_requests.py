"""Random requests: texts of exactly the tokens that are asked for, and media of noise in sizes drawn by weight.

Some prompts share one of a few beginnings. Noise is the worst case for a codec, and no two pictures share a tile.
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

from tilewise.bench import check_at_least
from tilewise.bench.requests import Media, SampleRequest
from tilewise.bench.tokenizer import BenchTokenizer
from tilewise.errors import InvalidConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TRIES = 20
"""Most times that a prompt is mended: text that is encoded again may have more or fewer tokens than it was made of."""
_DRAWS = 8
"""Random tokens drawn for each one that is to stay the same when its text is encoded again."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of prompts and answers. A `spread` of r draws both evenly from [n(1-r), n(1+r)]."""

    input: int = 1024
    output: int = 128
    prefix: int = 0
    """Tokens in front that all prompts share."""
    spread: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.spread < 1:
            raise InvalidConfig(f"--random-range-ratio must be from 0 to below 1, got {self.spread:g}.")
        if self.prefix < 0 or self.prefix + math.floor(self.input * (1 - self.spread)) < 1:
            raise InvalidConfig(
                f"--random-input-len {self.input} with --random-prefix-len {self.prefix} and --random-range-ratio "
                f"{self.spread:g} makes empty prompts: ask for at least one token."
            )
        if math.floor(self.output * (1 - self.spread)) < 1:
            raise InvalidConfig(f"--random-output-len {self.output} asks for empty answers: at least one token.")

    def draw(self, mean: int, count: int, generator: np.random.Generator) -> list[int]:
        low, high = math.floor(mean * (1 - self.spread)), math.ceil(mean * (1 + self.spread))
        return [int(length) for length in generator.integers(low, high + 1, count)]


class RandomText:
    """A maker of prompts. Each goes through the vocabulary from another place on, so that no two begin alike."""

    def __init__(self, tokenizer: BenchTokenizer, seed: int) -> None:
        self._tokenizer = tokenizer
        self._ordinary = np.asarray(tokenizer.ordinary)
        self.generator = np.random.default_rng(seed)

    def requests(self, count: int, lengths: Lengths) -> Iterator[SampleRequest]:
        inputs = lengths.draw(lengths.input, count, self.generator)
        outputs = lengths.draw(lengths.output, count, self.generator)
        places = self.generator.permutation(len(self._ordinary))
        prefix = self.beginning(lengths.prefix)
        for number, (asked, wanted) in enumerate(zip(inputs, outputs, strict=True)):
            # Prompts beyond the size of the vocabulary begin where earlier ones did, and go on in longer strides.
            rounds, place = divmod(number, len(places))
            body = self._ordinary[(places[place] + (1 + rounds) * np.arange(asked)) % len(places)]
            text, tokens = self.text([*prefix, *body.tolist()])
            yield SampleRequest(text, tokens, wanted)

    def beginning(self, count: int) -> list[int]:
        """Return random tokens for prompts to begin with, which stay as many when others stand behind them."""
        return self._tokenizer.encode(self.text(self._lasting(count))[0]) if count else []

    def tokens(self, count: int) -> list[int]:
        """Return `count` random tokens."""
        return [int(token) for token in self.generator.choice(self._ordinary, count)]

    def _lasting(self, count: int) -> list[int]:
        """Return `count` random tokens that are the same when the text of each is encoded again.

        Halves of characters are not. Where too few of the tokens drawn are so, others make up the number.
        """
        found: list[int] = []
        for token in self.tokens(_DRAWS * count):
            if len(found) < count and self._tokenizer.encode(self._tokenizer.decode([token])) == [token]:
                found.append(token)
        return [*found, *self.tokens(count - len(found))]

    def text(self, ids: Sequence[int]) -> tuple[str, int]:
        """Return a text of as many tokens as there are ids, and its number of tokens.

        They are fewer or more only where no try was exact.
        """
        wanted, ids = len(ids), list(ids)
        for attempt in range(_TRIES):
            text = self._tokenizer.decode(ids)
            ids = self._tokenizer.encode(text)
            if len(ids) == wanted:
                break
            # Where the cut is within a character, another try at that place fails, too: each cuts further to the left.
            kept = ids[: max(0, wanted - attempt)]
            ids = kept + self._lasting(wanted - len(kept))
        else:
            text = self._tokenizer.decode(ids)
            ids = self._tokenizer.encode(text)
        return text, len(ids)


@dataclass(frozen=True, slots=True)
class Repetition:
    prefix: int = 256
    suffix: int = 256
    prefixes: int = 10
    output: int = 128

    def __post_init__(self) -> None:
        check_at_least(1, prefix_repetition_prefix_len=self.prefix, prefix_repetition_num_prefixes=self.prefixes)
        check_at_least(1, prefix_repetition_output_len=self.output)
        check_at_least(0, prefix_repetition_suffix_len=self.suffix)


def repeated(text: RandomText, count: int, shape: Repetition) -> Iterator[SampleRequest]:
    """Yield `count` prompts, spread evenly over the beginnings, in random order. Raises InvalidConfig for too few."""
    if count < shape.prefixes:
        raise InvalidConfig(
            f"--num-prompts {count} is below --prefix-repetition-num-prefixes {shape.prefixes}: ask for more prompts."
        )
    beginnings = [text.beginning(shape.prefix) for _ in range(shape.prefixes)]
    made = []
    for number in range(count):
        words, tokens = text.text([*beginnings[number % shape.prefixes], *text.tokens(shape.suffix)])
        made.append(SampleRequest(words, tokens, shape.output))
    for place in text.generator.permutation(count):
        yield made[place]


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
