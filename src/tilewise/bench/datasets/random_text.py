"""Prompts of random tokens, of exactly the lengths that are asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tilewise.bench.samples import SampleRequest
from tilewise.bench.words import Words
from tilewise.errors import InvalidConfig

_TRIES = 20
"""How often a prompt is mended. Text that is encoded again may have more tokens or fewer than it was made of."""
_DRAWS = 8
"""Tokens drawn for each that is to last."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of prompts and answers. `spread` r draws both evenly from [n(1-r), n(1+r)]."""

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
    """Makes prompts; each goes through the vocabulary from another place on, so that no two begin alike."""

    def __init__(self, words: Words, seed: int) -> None:
        self._words = words
        self._ordinary = np.asarray(words.ordinary)
        self.generator = np.random.default_rng(seed)

    def requests(self, count: int, lengths: Lengths) -> Iterator[SampleRequest]:
        inputs = lengths.draw(lengths.input, count, self.generator)
        outputs = lengths.draw(lengths.output, count, self.generator)
        places = self.generator.permutation(len(self._ordinary))
        prefix = self.beginning(lengths.prefix)
        for number, (asked, wanted) in enumerate(zip(inputs, outputs, strict=True)):
            rounds, place = divmod(number, len(places))
            body = self._ordinary[(places[place] + (1 + rounds) * np.arange(asked)) % len(places)]
            text, tokens = self.text([*prefix, *body.tolist()])
            yield SampleRequest(text, tokens, wanted)

    def beginning(self, count: int) -> list[int]:
        """Random tokens that stay as many when more stand behind them."""
        return self._words.encode(self.text(self._lasting(count))[0]) if count else []

    def tokens(self, count: int) -> list[int]:
        """So many random ones."""
        return [int(token) for token in self.generator.choice(self._ordinary, count)]

    def _lasting(self, count: int) -> list[int]:
        """So many random ones that are the same when their text is encoded again; halves of characters are not."""
        found: list[int] = []
        for token in self.tokens(_DRAWS * count):
            if len(found) < count and self._words.encode(self._words.decode([token])) == [token]:
                found.append(token)
        return [*found, *self.tokens(count - len(found))]

    def text(self, ids: Sequence[int]) -> tuple[str, int]:
        """A text of as many tokens as there are ids, and its tokens: fewer or more only where no try was exact."""
        wanted, ids = len(ids), list(ids)
        for attempt in range(_TRIES):
            text = self._words.decode(ids)
            ids = self._words.encode(text)
            if len(ids) == wanted:
                break
            # A cut within a character stays one however often it is made: each try cuts further to the left.
            kept = ids[: max(0, wanted - attempt)]
            ids = kept + self._lasting(wanted - len(kept))
        else:
            text = self._words.decode(ids)
            ids = self._words.encode(text)
        return text, len(ids)
