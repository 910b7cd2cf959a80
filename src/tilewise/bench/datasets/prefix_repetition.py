"""A few beginnings, and many prompts with one of them: what caching of prefixes is worth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tilewise.bench.datasets.random_text import RandomText
from tilewise.bench.samples import SampleRequest
from tilewise.errors import InvalidConfig


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
    """As many prompts of each beginning, in random order."""
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
