"""Source: a data set by name, with all that shapes it, and the requests that come of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tilewise.bench.datasets.lines import InvalidData, custom, sharegpt
from tilewise.bench.datasets.prefix_repetition import Repetition, repeated
from tilewise.bench.datasets.random_media import MediaShape, with_media
from tilewise.bench.datasets.random_text import Lengths, RandomText
from tilewise.bench.samples import SampleRequest
from tilewise.bench.words import Words
from tilewise.errors import InvalidConfig

NAMES = ("random", "random-mm", "sharegpt", "custom", "custom_mm", "prefix_repetition")
OF_FILES = ("sharegpt", "custom", "custom_mm")
IGNORING_END = ("random", "random-mm")
"""Whose answers go on to the length that was asked for."""


@dataclass(frozen=True)
class Source:
    name: str = "random"
    path: Path | None = None
    count: int = 1000
    seed: int = 0
    output: int | None = None
    """Tokens of each answer, of a file; None = as the file says."""
    shuffle: bool = True
    oversample: bool = True
    """A file of fewer requests is gone through again."""
    lengths: Lengths = field(default_factory=Lengths)
    media: MediaShape = field(default_factory=MediaShape)
    repetition: Repetition = field(default_factory=Repetition)

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InvalidConfig(f"--num-prompts must be at least 1, got {self.count}.")
        if (self.path is None) == (self.name in OF_FILES):
            raise InvalidConfig(
                f"--dataset-name {self.name} reads a file: name it with --dataset-path."
                if self.path is None
                else f"--dataset-name {self.name} reads no file: leave out --dataset-path, or choose {OF_FILES}."
            )

    def requests(self, words: Words | None) -> list[SampleRequest]:
        """Raises InvalidConfig, or InvalidData with the line of a file that is wrong."""
        if self.name in OF_FILES:
            return self._of_file(list(self._lines(words)))
        if words is None:
            raise InvalidConfig(f"--dataset-name {self.name} needs a tokenizer: leave out --skip-tokenizer-init.")
        text = RandomText(words, self.seed)
        if self.name == "prefix_repetition":
            return list(repeated(text, self.count, self.repetition))
        made = list(text.requests(self.count, self.lengths))
        return list(with_media(made, self.media, text.generator)) if self.name == "random-mm" else made

    def _lines(self, words: Words | None) -> Iterator[SampleRequest]:
        assert self.path is not None
        if self.name == "sharegpt":
            return sharegpt(self.path, words, self.output)
        return custom(self.path, words, self.output, media=self.name == "custom_mm")

    def _of_file(self, found: list[SampleRequest]) -> list[SampleRequest]:
        if not found:
            raise InvalidData(f"{self.path} has no request that can be sent.")
        if self.shuffle:
            found = [found[place] for place in np.random.default_rng(self.seed).permutation(len(found))]
        if self.oversample:
            return list(itertools.islice(itertools.cycle(found), self.count))
        return found[: self.count]
