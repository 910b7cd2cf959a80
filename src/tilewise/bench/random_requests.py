"""Random requests: texts of exactly the tokens that are asked for, and media of noise in sizes drawn by weight.

Some prompts share one of a few beginnings. Noise is the worst case for a codec, and no two pictures share a tile.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tilewise.bench.dataset_options import Bucket, DatasetChoice, RandomOptions
from tilewise.bench.requests import Media, SampleRequest
from tilewise.bench.tokenizer import BenchTokenizer
from tilewise.errors import InvalidConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TRIES = 20
"""Most times that a prompt is mended: text that is encoded again may have more or fewer tokens than it was made of."""
_DRAWS = 8
"""Random tokens drawn for each one that is to stay the same when its text is encoded again."""


class RandomText:
    """A maker of prompts. Each goes through the vocabulary from another place on, so that no two begin alike."""

    def __init__(self, tokenizer: BenchTokenizer, seed: int) -> None:
        self._tokenizer = tokenizer
        self._ordinary = np.asarray(tokenizer.ordinary)
        self.generator = np.random.default_rng(seed)

    def requests(self, options: RandomOptions) -> Iterator[SampleRequest]:
        inputs, outputs = (self._lengths(options, mean) for mean in (options.mean_input, options.mean_output))
        places = self.generator.permutation(len(self._ordinary))
        prefix = self._beginning(options.random_prefix_len)
        for number, (asked, wanted) in enumerate(zip(inputs, outputs, strict=True)):
            # Prompts beyond the size of the vocabulary begin where earlier ones did, and go on in longer strides.
            rounds, place = divmod(number, len(places))
            body = self._ordinary[(places[place] + (1 + rounds) * np.arange(asked)) % len(places)]
            text, tokens = self._text([*prefix, *body.tolist()])
            yield SampleRequest(text, tokens, wanted)

    def repeated(self, drawn: RandomOptions, choice: DatasetChoice) -> Iterator[SampleRequest]:
        """Yield prompts, spread evenly over a few beginnings, in random order. Raises InvalidConfig for too few."""
        count, prefixes = drawn.num_prompts, choice.prefix_repetition_num_prefixes
        if count < prefixes:
            raise InvalidConfig(
                f"--num-prompts {count} is below --prefix-repetition-num-prefixes {prefixes}: ask for more prompts."
            )
        wanted = choice.prefix_repetition_output_len if drawn.output_len is None else drawn.output_len
        beginnings = [self._beginning(choice.prefix_repetition_prefix_len) for _ in range(prefixes)]
        made = []
        for number in range(count):
            suffix = self._tokens(choice.prefix_repetition_suffix_len)
            made.append(SampleRequest(*self._text([*beginnings[number % prefixes], *suffix]), wanted))
        for place in self.generator.permutation(count):
            yield made[place]

    def _lengths(self, options: RandomOptions, mean: int) -> list[int]:
        low, high = options.bounds(mean)
        found: list[int] = self.generator.integers(low, high + 1, options.num_prompts).tolist()
        return found

    def _beginning(self, count: int) -> list[int]:
        """Return random tokens for prompts to begin with, which stay as many when others stand behind them."""
        return self._tokenizer.encode(self._text(self._lasting(count))[0]) if count else []

    def _tokens(self, count: int) -> list[int]:
        """Return `count` random tokens."""
        return [int(token) for token in self.generator.choice(self._ordinary, count)]

    def _lasting(self, count: int) -> list[int]:
        """Return `count` random tokens that are the same when the text of each is encoded again.

        Halves of characters are not. Where too few of the tokens drawn are so, others make up the number.
        """
        found: list[int] = []
        for token in self._tokens(_DRAWS * count):
            if len(found) < count and self._tokenizer.encode(self._tokenizer.decode([token])) == [token]:
                found.append(token)
        return [*found, *self._tokens(count - len(found))]

    def _text(self, ids: Sequence[int]) -> tuple[str, int]:
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


_FRAMES_PER_SECOND = 30


def with_media(
    requests: Sequence[SampleRequest], options: RandomOptions, generator: np.random.Generator
) -> Iterator[SampleRequest]:
    for request in requests:
        yield replace(request, media=tuple(_media(bucket, generator) for bucket in _draw(options, generator)))


def _draw(options: RandomOptions, generator: np.random.Generator) -> Iterator[Bucket]:
    """Draw the media of one request. A kind that has reached its limit is drawn no more."""
    left, (fewest, most) = dict(options.limits), options.media_bounds
    for _ in range(int(generator.integers(fewest, most + 1))):
        open_ = [bucket for bucket in options.buckets if left[bucket.kind] > 0]
        weights = np.array([bucket.weight for bucket in open_])
        bucket = open_[int(generator.choice(len(open_), p=weights / weights.sum()))]
        left[bucket.kind] -= 1
        yield bucket


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
