"""Rounding with error feedback, compared with rounding to the nearest code."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tilewise.quantize.rounding import Rounding, round_matrix, round_with_feedback


def correlated(inputs: int, seed: int = 0) -> Tensor:
    """Activations [500, inputs] of which some matter more, and which have to do with each other."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator) * torch.rand(inputs, generator=generator).exp()
    return torch.randn(500, inputs, generator=generator) @ mix


@pytest.mark.parametrize("group", [32, None])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_error_feedback_changes_products_less(group, asymmetric):
    x = correlated(192)
    matrix = torch.randn(64, 192, generator=torch.Generator().manual_seed(1))
    rounding = Rounding(4, group, asymmetric)
    nearest = round_matrix(matrix, rounding, "matrix").dequantised()
    chosen = round_with_feedback(matrix, [x.T @ x], rounding, "matrix").dequantised()
    exact = x @ matrix.T
    assert (x @ chosen.T - exact).norm() < 0.7 * (x @ nearest.T - exact).norm()


def test_runs_of_inputs_are_rounded_one_by_one():
    """As they are where a matrix is too wide for all products of its inputs to be kept."""
    x, matrix = correlated(128), torch.randn(16, 128, generator=torch.Generator().manual_seed(1))
    rounding, moments = Rounding(4, 32), x.T @ x
    runs = [moments[:64, :64], moments[64:, 64:]]
    whole = round_with_feedback(matrix, runs, rounding, "matrix").dequantised()
    for part, run in ((slice(0, 64), runs[0]), (slice(64, 128), runs[1])):
        assert torch.equal(whole[:, part], round_with_feedback(matrix[:, part], [run], rounding, "x").dequantised())


def test_without_activations_numbers_go_to_the_nearest():
    matrix, rounding = torch.randn(8, 64), Rounding(4, 32)
    found = round_with_feedback(matrix, [torch.zeros(64, 64)], rounding, "matrix")
    assert torch.equal(found.levels, round_matrix(matrix, rounding, "matrix").levels)
