"""Parts: what is measured, each in a process of its own, in the order in which time is given to them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from benchmarks.gpu.items import Item
from benchmarks.gpu.setup import Setup

Items = Callable[[Setup], Iterator[Item]]


@dataclass(frozen=True)
class Part:
    about: str
    items: Items
    seconds: int
    """It may take. What has begun then is finished if that takes no longer than `GRACE`."""
    least: int = 15
    """Seconds without which it does not begin."""
    patience: int | None = None
    """Seconds after which a single item is given up; None = those of the part."""


def _rates(setup: Setup) -> Iterator[Item]:
    from benchmarks.gpu import rates

    return rates.items(setup)


def _ops(setup: Setup) -> Iterator[Item]:
    from benchmarks.gpu import ops

    return ops.items(setup)


def _model(
    size: str, setup: Setup, quantization: str | None = None, scheme: str | None = None, whole: bool = False
) -> Iterator[Item]:
    from benchmarks.gpu import engine
    from benchmarks.gpu.models import Model

    return engine.items(Model(size, quantization, scheme), whole, setup)


def _fp8_rows(setup: Setup) -> Iterator[Item]:
    os.environ["TILEWISE_FP8_ROWS"] = "1"  # of this part's own process
    return _model("8B", setup, quantization="fp8")


def _start(size: str, setup: Setup) -> Iterator[Item]:
    from benchmarks.gpu import engine
    from benchmarks.gpu.models import Model

    return engine.start_items(Model(size), setup)


def _transformers(size: str, setup: Setup) -> Iterator[Item]:
    from benchmarks.gpu import transformers_

    return transformers_.items(size, setup)


PARTS: dict[str, Part] = {
    "card": Part("what the device copies and multiplies a second", _rates, 20),
    "1B": Part("InternVL3-1B, its kernels compiled as they are needed", partial(_model, "1B", whole=True), 90, 25),
    "1B-again": Part("its start once more, with kernels that are compiled", partial(_start, "1B"), 20, 10),
    "ops": Part("every op beside the reference", _ops, 110, 20, patience=40),
    "8B": Part("InternVL3-8B in bfloat16", partial(_model, "8B", whole=True), 75, 30),
    "transformers-8B": Part("transformers with the shapes of InternVL3-8B", partial(_transformers, "8B"), 30),
    "30B-A3B": Part("InternVL3.5-30B-A3B in bfloat16", partial(_model, "30B-A3B"), 60, 35),
    "8B-int8": Part(
        "InternVL3-8B as W8A8, rounded as it is loaded", partial(_model, "8B", quantization="int8"), 40, 25
    ),
    "8B-fp8": Part("InternVL3-8B as FP8, rounded as it is loaded", partial(_model, "8B", quantization="fp8"), 40, 25),
    "8B-fp8-rows": Part("the same FP8 with rows rounded to FP8, too (TILEWISE_FP8_ROWS)", _fp8_rows, 40, 25),
    "8B-w4a16": Part("InternVL3-8B in 4 bits, groups of 128", partial(_model, "8B", scheme="w4a16"), 40, 25),
    "transformers-1B": Part("transformers with the shapes of InternVL3-1B", partial(_transformers, "1B"), 25),
}
GRACE = 15
"""Seconds that a process has to end in, when the time of its part is up."""
