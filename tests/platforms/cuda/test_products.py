"""Products with quantised weights against plain torch, and against float64."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.platforms.test_grouped import grouped, levels_form, noise
from tilewise.platforms.cuda import A100, H100, Card, weights
from tilewise.platforms.cuda.weights import CudaInt8Weight, CudaWeight, cuda_store
from tilewise.platforms.fallback import FallbackOps
from tilewise.platforms.forms import Codes, Dense, Form, Grouped, Int8, StaticRows, packed_nibbles
from tilewise.platforms.ops import Ops
from tilewise.platforms.weights import DenseWeight, GroupedWeight, Int8Weight, SideBySide, side_by_side

REFERENCE = Ops()
SMALL = Card((9, 0), 1)
"""On which inputs are never split."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
kinds = pytest.mark.parametrize("kind", list(Codes), ids=lambda kind: kind.name)
PRECISION = {torch.float32: 1e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
"""One of a number's last places."""


def kept(
    form: Form, bias: Tensor | None, device: torch.device, card: Card = H100, fp8_rows: bool = False
) -> CudaWeight:
    moved = {name: getattr(form, name) for name in form.__dataclass_fields__}
    moved = {name: x.to(device) for name, x in moved.items() if isinstance(x, Tensor)}
    weight = cuda_store(card, fp8_rows=fp8_rows)([replace(form, **moved)], None if bias is None else bias.to(device))
    assert isinstance(weight, CudaWeight)
    return weight


@pytest.mark.parametrize("static", [None, StaticRows(0.037, 11)], ids=str)
@pytest.mark.parametrize(
    ("inputs", "outputs", "rows", "card", "dtype"),
    [
        (1, 1, 1, H100, torch.float32),
        (260, 130, 3, A100, torch.float16),
        (70, 33, 65, H100, torch.bfloat16),
        (70, 33, 17, SMALL, torch.float32),
        (1030, 31, 17, H100, torch.bfloat16),
    ],
)
def test_int8_is_the_plain_one_bit_by_bit(
    dtype: torch.dtype,
    static: StaticRows | None,
    inputs: int,
    outputs: int,
    rows: int,
    card: Card,
    device: torch.device,
) -> None:
    """The last case is split."""
    form, x = levels_form(inputs, outputs, static), (3 * noise(rows, inputs, seed=rows)).to(dtype)
    for bias in (None, noise(outputs, seed=8).to(dtype)):
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
def test_grouped_products_are_those_of_the_dequantised_matrix(kind: Codes, device: torch.device) -> None:
    """One kind of codes meets a case in float16, and the next one in bfloat16."""
    dtypes = itertools.islice(itertools.cycle(DTYPES[1:]), list(Codes).index(kind), None)
    for (inputs, outputs, group, shifts, ordered, rows, card), dtype in zip(CASES, dtypes, strict=False):
        form = grouped(kind, inputs, outputs, group, shifts, ordered)
        bias = None if ordered else noise(outputs, seed=8).to(dtype)
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


@kinds
@pytest.mark.parametrize("rows", [1, 3], ids=["few", "many"])
def test_every_code_is_its_number(kind: Codes, rows: int, device: torch.device) -> None:
    """Rows of the identity give the matrix itself, in which no sum is rounded; times few rows and many."""
    count = 2**kind.bits
    codes = torch.arange(count, dtype=torch.uint8).repeat(3, 1)
    if kind is Codes.FP8:
        codes[(codes & 127) == 127] = 0
    codes = packed_nibbles(codes) if kind.bits == 4 else codes
    form = Grouped(kind, codes, torch.tensor([[1.0], [0.5], [-2.0]]), None, count)
    weight, x = kept(form, None, device), torch.eye(count, dtype=torch.bfloat16, device=device)
    some = x.split(32) if rows == 1 else [x.repeat(4, 1)[: max(65, count)]]
    found = torch.cat([weight.apply(part, REFERENCE) for part in some])[:count]
    assert torch.equal(found.T.float().cpu(), form.dequantised())


@pytest.mark.parametrize("rows", [3, 65])
def test_a_code_that_is_no_number_makes_its_output_none(rows: int, device: torch.device) -> None:
    for group, fp8_rows in ((70, False), (32, False), (70, True)):
        form = grouped(Codes.FP8, 70, 33, group)
        form.codes[4, 9] = 0xFF
        weight = kept(form, None, device, fp8_rows=fp8_rows)
        found = weight.apply(noise(rows, 70, seed=3).bfloat16().to(device), REFERENCE).isnan()
        assert found[:, 4].all()
        assert found.sum() == rows


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("rows", [3, 65])
def test_what_is_no_number_spoils_its_own_row_alone(rows: int, device: torch.device) -> None:
    forms: list[Form] = [grouped(Codes.INT4, 70, 33, 32, "floats"), grouped(Codes.FP8, 70, 33, 70)]
    forms.append(levels_form(70, 33, None))
    for form in forms:
        weight = kept(form, None, device, fp8_rows=True)
        x = noise(rows, 70, seed=3).bfloat16().to(device)
        expected = weight.apply(x, REFERENCE)
        x[1, 0], x[2, -1] = float("nan"), float("inf")
        found = weight.apply(x, REFERENCE)
        others = [row for row in range(rows) if row not in (1, 2)]
        assert torch.equal(found[others], expected[others])
        assert not found[[1, 2]].isfinite().any()


class TorchAlone(FallbackOps):
    """Ops of a card on which no kernel can be compiled."""

    kernels = "CUDA kernels"

    def attempt(self, kernel: Any, instead: Any, *args: Any, **named: Any) -> Any:
        def failing(*_: Any) -> None:
            raise ValueError("out of resource: shared memory")

        return super().attempt(failing, instead, *args, **named)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("static", [None, StaticRows(0.037, 11)], ids=str)
def test_torch_multiplies_int8_where_the_kernel_fails(static: StaticRows | None, gelu: bool, caplog: Any) -> None:
    form, x, bias, ops = levels_form(70, 33, static), noise(2, 3, 70, seed=1), noise(33, seed=8), TorchAlone()
    weight, plain = kept(form, bias, torch.device("cpu")), Int8Weight(form, bias).apply(x, REFERENCE)
    for _ in range(2):
        found = weight.apply(x, ops, gelu)
        torch.testing.assert_close(found, REFERENCE.gelu(plain) if gelu else plain)
    assert [record.message for record in caplog.records] == [
        "CUDA kernels: int8_product is left to torch, as ours fails: out of resource: shared memory"
    ]


@kinds
def test_torch_multiplies_codes_where_the_kernel_fails(kind: Codes, monkeypatch: Any) -> None:
    monkeypatch.setattr(weights, "_OUTPUTS", 40)
    for inputs, outputs, group, shifts, ordered, rows, card in CASES:
        form, ops = grouped(kind, inputs, outputs, group, shifts, ordered), TorchAlone()
        x, bias = noise(rows, form.shape[1], seed=rows), noise(outputs, seed=8)
        weight = kept(form, bias, torch.device("cpu"), card)
        torch.testing.assert_close(
            weight.apply(x, ops), GroupedWeight(form, bias).apply(x, REFERENCE), rtol=1e-5, atol=1e-4
        )
        assert set(ops.left_out) == {"grouped_product"}


def every_weight(device: torch.device) -> list[CudaWeight]:
    bias = noise(33, seed=1)
    static = levels_form(70, 33, StaticRows(0.037, 11))
    forms = (grouped(Codes.UINT4, 70, 33, 32, "zeros"), grouped(Codes.FP8, 70, 33, 70), static)
    return [kept(form, bias, device, fp8_rows=True) for form in forms]


@pytest.mark.parametrize(("dtype", "rows"), [(torch.float32, 1), (torch.bfloat16, 33)], ids=str)
def test_gelu_of_a_product_is_the_product_and_its_gelu(dtype: torch.dtype, rows: int, device: torch.device) -> None:
    x = 10 * noise(rows, 70, seed=rows).to(device, dtype)
    for weight in every_weight(device):
        found, plain = weight.apply(x, REFERENCE, gelu=True), REFERENCE.gelu(weight.apply(x, REFERENCE))
        torch.testing.assert_close(found, plain, rtol=PRECISION[dtype], atol=1e-6)


def test_leading_axes_gaps_and_no_rows_make_no_difference(device: torch.device) -> None:
    wide = noise(3, 2, 140, seed=4).bfloat16().to(device)[..., :70]
    for weight in every_weight(device):
        flat = weight.apply(wide.reshape(6, 70).contiguous(), REFERENCE)
        assert torch.equal(weight.apply(wide, REFERENCE), flat.view(3, 2, 33))
        assert weight.apply(wide[:0], REFERENCE).shape == (0, 2, 33)


@pytest.mark.parametrize("kind", [Codes.UINT4, Codes.FP8])
def test_split_products_are_the_whole_ones(kind: Codes, device: torch.device) -> None:
    """But for the order of sums; and the same every time."""
    form, x = grouped(kind, 1100, 33, 128), noise(3, 1100, seed=1).bfloat16().to(device)
    whole, split = (kept(form, None, device, card).apply(x, REFERENCE) for card in (SMALL, H100))
    torch.testing.assert_close(whole, split, rtol=2**-7, atol=1e-5)
    assert torch.equal(split, kept(form, None, device, H100).apply(x, REFERENCE))


def on_meta(form: Form) -> Form:
    fields = {name: getattr(form, name) for name in form.__dataclass_fields__}
    return replace(form, **{name: x.to("meta") for name, x in fields.items() if isinstance(x, Tensor)})


@kinds
def test_bytes_are_those_of_shapes_at_most(kind: Codes, device: torch.device) -> None:
    for group, shifts in ((128, ""), (128, "zeros"), (128, "floats"), (640, ""), (64, "zeros")):
        form = grouped(kind, 640, 160, group, shifts, ordered=True)
        groups = 640 // group
        most = 160 * (640 * kind.bits // 8 + groups * (8 if shifts else 4)) + 8 * 640
        for fp8_rows in (True, False):
            weight = kept(form, None, device, fp8_rows=fp8_rows)
            shapes = cuda_store(H100, fp8_rows=fp8_rows)([on_meta(form)], None)
            assert type(shapes) is type(weight)
            assert weight.nbytes <= shapes.nbytes == most
        if shifts == "zeros":  # half precision and bytes
            assert weight.nbytes == most - 160 * groups * 5


def test_bytes_of_int8_are_those_of_shapes(device: torch.device) -> None:
    for static in (None, StaticRows(0.1, 3)):
        form = levels_form(70, 33, static)
        found = [cuda_store(H100)([one], None) for one in (form, on_meta(form))]
        assert found[0].nbytes == found[1].nbytes == 33 * (80 + 4 + (4 if static else 0))
    floats = Dense(noise(33, 64, seed=1))
    found = [cuda_store(H100, int8=True)([one], None) for one in (floats, on_meta(floats))]
    assert found[0].nbytes == found[1].nbytes == 33 * 68


def test_forms_are_kept_for_their_kernels_or_in_plain_torch() -> None:
    floats, odd = Dense(noise(33, 70, seed=1)), grouped(Codes.INT4, 70, 33, 10)
    assert isinstance(cuda_store(H100)([floats], None), DenseWeight)
    assert isinstance(cuda_store(H100)([odd], None), GroupedWeight)
    assert isinstance(cuda_store(H100, int8=True)([floats, floats], None), CudaInt8Weight)
    assert isinstance(cuda_store(H100, int8=True)([odd], None), GroupedWeight)


def test_parts_of_several_forms_stand_side_by_side(device: torch.device) -> None:
    parts: list[Form] = [grouped(Codes.INT4, 70, 16, 32), grouped(Codes.INT4, 70, 17, 32), levels_form(70, 5, None)]
    bias, x = noise(38, seed=2), noise(3, 70, seed=1)
    weight = side_by_side(parts, bias, cuda_store(H100))
    assert isinstance(weight, SideBySide)
    if device.type == "cpu":
        expected = Ops().store(parts, bias).apply(x, REFERENCE)
        torch.testing.assert_close(weight.apply(x, REFERENCE), expected, rtol=1e-5, atol=1e-5)


def test_many_tiles(device: torch.device) -> None:
    """Tiles of 256 rows, which Hopper takes from 513 on, and more tiles of rows than run together."""
    form, levels = grouped(Codes.UINT4, 70, 33, 64, "zeros"), levels_form(70, 130, None)
    for card, rows in ((H100, 513), (A100, 1100)):
        x = noise(rows, 70, seed=1).bfloat16()
        found = kept(levels, None, device, card).apply(x.to(device), REFERENCE).cpu()
        assert torch.equal(found, Int8Weight(levels, None).apply(x, REFERENCE))
        found = kept(form, None, device, card).apply(x.to(device), REFERENCE).cpu()
        assert_near(found, x, form.dequantised(), None, rounded_weights=True)
