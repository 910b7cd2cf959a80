"""The cases of `benchmarks.gpu`, which compare ops on a card, on tiny shapes in the interpreter."""

from __future__ import annotations

import pytest
import torch
from benchmarks.gpu.case import Case, Noise
from benchmarks.gpu.ops import all_cases
from benchmarks.gpu.timer import Timer

from tilewise.platforms.cuda import H100, Card
from tilewise.platforms.cuda.triton_ops import TritonOps

CASES = {case.name: case for case in all_cases(tiny=True) if " 1B" not in case.name}
"""Twins of 1B and 8B have the same shapes."""
SOME = [
    pytest.param(case, id=name, marks=[pytest.mark.slow] if "moe_experts" in name and "17 rows" in name else [])
    for name, case in CASES.items()
]


class NoTimer(Timer):
    """How long the interpreter takes is no matter."""

    def seconds(self, call: object, most: int = 1) -> float:
        return 0.0


@pytest.mark.parametrize("case", SOME)
def test_kernels_are_as_near_to_float32_as_the_reference(case: Case, device: torch.device) -> None:
    ops = TritonOps(Card.of(device) if device.type == "cuda" else H100)
    noise = Noise(torch.Generator(device).manual_seed(5))
    found = case.check(ops, noise, NoTimer(device))
    assert ops.left_out == {}
    assert found.passes, found
