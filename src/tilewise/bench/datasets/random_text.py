"""Prompts of random tokens, of exactly the lengths that are asked for; some share one of a few beginnings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tilewise.bench.requests import SampleRequest
from tilewise.bench.words import BenchTokenizer
from tilewise.errors import InvalidConfig

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

    def __init__(self, words: BenchTokenizer, seed: int) -> None:
        self._words = words
        self._ordinary = np.asarray(words.ordinary)
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
        return self._words.encode(self.text(self._lasting(count))[0]) if count else []

    def tokens(self, count: int) -> list[int]:
        """Return `count` random tokens."""
        return [int(token) for token in self.generator.choice(self._ordinary, count)]

    def _lasting(self, count: int) -> list[int]:
        """Return `count` random tokens that are the same when the text of each is encoded again.

        Halves of characters are not. Where too few of the tokens drawn are so, others make up the number.
        """
        found: list[int] = []
        for token in self.tokens(_DRAWS * count):
            if len(found) < count and self._words.encode(self._words.decode([token])) == [token]:
                found.append(token)
        return [*found, *self.tokens(count - len(found))]

    def text(self, ids: Sequence[int]) -> tuple[str, int]:
        """Return a text of as many tokens as there are ids, and its number of tokens.

        They are fewer or more only where no try was exact.
        """
        wanted, ids = len(ids), list(ids)
        for attempt in range(_TRIES):
            text = self._words.decode(ids)
            ids = self._words.encode(text)
            if len(ids) == wanted:
                break
            # Where the cut is within a character, another try at that place fails, too: each cuts further to the left.
            kept = ids[: max(0, wanted - attempt)]
            ids = kept + self._lasting(wanted - len(kept))
        else:
            text = self._words.decode(ids)
            ids = self._words.encode(text)
        return text, len(ids)


@dataclass(frozen=True, slots=True)
class Repetition:
    prefix: int = 256
    suffix: int = 256
    prefixes: int = 10
    output: int = 128

    def __post_init__(self) -> None:
        for name, value in (("prefix-len", self.prefix), ("num-prefixes", self.prefixes), ("output-len", self.output)):
            if value < 1:
                raise InvalidConfig(f"--prefix-repetition-{name} must be at least 1, got {value}.")
        if self.suffix < 0:
            raise InvalidConfig(f"--prefix-repetition-suffix-len must be at least 0, got {self.suffix}.")


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
