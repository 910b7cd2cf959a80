"""Benchmarks: load on a server, and the engine in this process. Tables, fields and file names are vLLM's.

What is measured is in dataclasses (`requests`, `load`, `figures`), so that the same answers give the same figures
wherever they came from. Nothing here knows the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tilewise.errors import InvalidConfig

Say = Callable[[str], None]
"""A function that takes each line that is for the user."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A kind of requests, as it is named by vLLM."""

    reads_file: bool = False
    ignores_end: bool = False
    """True if answers go on to the length that was asked for, whatever ends them otherwise."""


DATASETS = {
    "random": Dataset(ignores_end=True),
    "random-mm": Dataset(ignores_end=True),
    "sharegpt": Dataset(reads_file=True),
    "custom": Dataset(reads_file=True),
    "custom_mm": Dataset(reads_file=True),
    "prefix_repetition": Dataset(),
}
"""Data sets by their names; `datasets.py` makes their requests. The command line reads this without loading numpy."""


def check_at_least(least: int, **counts: int) -> None:
    """Raise InvalidConfig for a count below `least`, by the name of its flag."""
    for name, count in counts.items():
        if count < least:
            raise InvalidConfig(f"--{name.replace('_', '-')} must be at least {least}, got {count}.")


def known(names: Sequence[str], refused: Mapping[str, str]) -> Callable[[str], str]:
    """Return a reader of one of `names`, which says of those that only vLLM has why they are refused."""

    def read(text: str) -> str:
        if text in refused:
            raise ValueError(f"{text!r} is refused: {refused[text]}")
        if text not in names:
            raise ValueError(f"{text!r} is none of {', '.join(names)}")
        return text

    return read
