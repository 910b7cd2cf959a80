"""Products with quantised weights against plain torch, and against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.platforms.test_grouped import grouped, levels_form, noise, numbers
from tilewise.platforms.cuda.card import A100, H100, Card
from tilewise.platforms.cuda.weights import CudaFp8Weight, CudaGroupedWeight, CudaInt8Weight, CudaWeight, keeper
from tilewise.platforms.forms import Codes, Dense, Form, Grouped, Int8, StaticRows, packed_nibbles
from tilewise.platforms.kv_cache import quantise
from tilewise.platforms.reference import ReferenceOps
from tilewise.platforms.weights import DenseWeight, GroupedWeight, Int8Weight, SideBySide, side_by_side

REFERENCE = ReferenceOps()
SMALL = Card((9, 0), 1)
"""On which inputs are never split."""
cards = pytest.mark.parametrize("card", [SMALL, H100, A100], ids=["unsplit", "sm_90", "sm_80"])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
kinds = pytest.mark.parametrize("kind", list(Codes), ids=lambda kind: kind.name)
ROWS = (1, 3, 17, 65)
PRECISION = {torch.float32: 1e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
"""One of a number's last places."""


def kept(form: Form, bias: Tensor | None, device: torch.device, card: Card = H100, fp8_rows: bool = False) -> CudaWeight:
    moved = {name: getattr(form, name) for name in form.__dataclass_fields__}
    moved = {name: x.to(device) for name, x in moved.items() if isinstance(x, Tensor)}
    weight = keeper(card, fp8_rows=fp8_rows)([replace(form, **moved)], None if bias is None else bias.to(device))
    assert isinstance(weight, CudaWeight)
    return weight


def weight_and_bias(outputs: int, dtype: torch.dtype, bias: bool) -> Tensor | None:
    return noise(outputs, seed=8).to(dtype) if bias else None


@cards
@dtypes
@pytest.mark.parametrize("static", [None, StaticRows(0.037, 11), StaticRows(0.5, -128)], ids=str)
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (33, 17), (516, 130), (1030, 31)])
def test_int8_is_the_plain_one_bit_by_bit(
    card: Card, dtype: torch.dtype, static: StaticRows | None, inputs: int, outputs: int, device: torch.device
) -> None:
    form = levels_form(inputs, outputs, static)
    for rows, biased in zip(ROWS, (True, False, True, False), strict=True):
        bias = weight_and_bias(outputs, dtype, biased)
        x = (3 * noise(rows, inputs, seed=rows)).to(dtype)
        found = kept(form, bias, device, card).apply(x.to(device), REFERENCE)
        assert torch.equal(found.cpu(), Int8Weight(form, bias).apply(x, REFERENCE))


def test_int8_sums_are_exact_where_float32_would_round(device: torch.device) -> None:
    form = Int8(torch.full((3, 3001), -127, dtype=torch.int8), torch.ones(3))
    x = torch.full((2, 3001), 127.0)
    x[1, 2500] = 126
    found = kept(form, None, device).apply(x.to(device), REFERENCE)
    expected = torch.tensor([[-3001 * 127 * 127] * 3, [-3001 * 127 * 127 + 127] * 3], dtype=torch.int32)
    assert torch.equal(found.cpu(), expected.float())


CASES = (
    # inputs, outputs, group, shifts, ordered, rows, card
    (514, 17, 64, "floats", False, 1, A100),
    (300, 50, 300, "", False, 3, SMALL),
    (1060, 33, 128, "zeros", True, 17, H100),  # split
    (70, 66, 32, "", True, 33, H100),
    (258, 130, 128, "floats", False, 65, H100),
    (96, 16, 16, "zeros", False, 65, A100),
    (1, 3, 128, "", False, 1, A100),
)


@kinds
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_grouped_products_are_those_of_the_dequantised_matrix(kind: Codes, dtype: torch.dtype, device: torch.device) -> None:
    for inputs, outputs, group, shifts, ordered, rows, card in CASES:
        form = grouped(kind, inputs, outputs, group, shifts, ordered)
        bias = weight_and_bias(outputs, dtype, not ordered)
        x = noise(rows, form.shape[1], seed=rows).to(dtype)
        found = kept(form, bias, device, card).apply(x.to(device), REFERENCE).cpu()
        assert found.dtype == dtype
        assert_near(found, x, form.dequantised(), bias, rounded_weights=rows > 32)


@kinds
def test_rows_of_float32_lose_nothing(kind: Codes, device: torch.device) -> None:
    form = grouped(kind, 140, 33, 64, "floats")
    x = noise(17, 140, seed=1)
    found = kept(form, None, device).apply(x.to(device), REFERENCE).cpu()
    assert_near(found, x, form.dequantised(), None, rounded_weights=False)


def assert_near(found: Tensor, x: Tensor, matrix: Tensor, bias: Tensor | None, rounded_weights: bool) -> None:
    exact, sizes = x.double() @ matrix.double().T, x.double().abs() @ matrix.double().abs().T
    if bias is not None:
        exact, sizes = exact + bias.double(), sizes + bias.double().abs()
    tolerance = 3e-6 * sizes + PRECISION[x.dtype] / 2 * exact.abs()
    if rounded_weights:
        tolerance += PRECISION[x.dtype] / 2 * sizes
    assert ((found.double() - exact).abs() <= tolerance).all(), ((found.double() - exact).abs() / tolerance).max()
