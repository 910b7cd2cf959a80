"""Stored weights: what each form makes of rows, what it keeps, and that a row does not depend on its batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tilewise.platforms.cpu import CpuPlatform
from tilewise.platforms.cpu.packed import PackedInt8Weight, PackedWeight
from tilewise.platforms.forms import Dense
from tilewise.platforms.ops import Ops, TorchOps
from tilewise.platforms.weights import Weight, as_it_came, int8_sums, quantise_rows, rounded_to_int8

OURS = CpuPlatform().ops()
native = pytest.mark.skipif(type(OURS) is TorchOps, reason="there are no kernels here")
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
shapes = pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (33, 17), (70, 130), (516, 48), (1030, 31)])
ROWS = (1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 25, 96, 97, 200, 800)


def noise(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def matrix_and_bias(inputs: int, outputs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return (noise(outputs, inputs, seed=1) / inputs**0.5).to(dtype), noise(outputs, seed=2, dtype=dtype)


@native
@both_dtypes
@shapes
@pytest.mark.parametrize("bias", [True, False])
def test_packed_products_are_rounded_once(inputs: int, outputs: int, dtype: torch.dtype, bias: bool) -> None:
    """Against float64: float32 sums are within 1e-5, and a bfloat16 is the nearest to such a sum or next to it."""
    matrix, offset = matrix_and_bias(inputs, outputs, dtype)
    weight = OURS.store([Dense(matrix)], offset if bias else None)
    assert isinstance(weight, PackedWeight)
    for rows in ROWS:
        x = noise(rows, inputs, seed=10 + rows, dtype=dtype)
        exact = x.double() @ matrix.double().T + (offset.double() if bias else 0)
        tolerance = 1e-5 + (2.0**-8 * exact.abs() if dtype == torch.bfloat16 else 0)
        found = weight.apply(x, OURS)
        assert found.dtype == dtype
        assert ((found.double() - exact).abs() <= tolerance).all()


def forms(inputs: int, outputs: int, dtype: torch.dtype) -> list[tuple[Ops, Weight]]:
    matrix, bias = matrix_and_bias(inputs, outputs, dtype)
    invariant = CpuPlatform().ops(batch_invariant=True)
    found: list[tuple[Ops, Weight]] = [(ops, ops.store_int8([Dense(matrix)], bias)) for ops in (OURS, Ops())]
    return found + [(ops, ops.store([Dense(matrix)], bias)) for ops in (OURS, invariant) if type(OURS) is not TorchOps]


@both_dtypes
@shapes
def test_a_row_is_the_same_bit_by_bit_in_any_batch(inputs: int, outputs: int, dtype: torch.dtype) -> None:
    x = noise(max(ROWS), inputs, seed=3, dtype=dtype)
    for ops, weight in forms(inputs, outputs, dtype):
        whole = weight.apply(x, ops)
        for rows in ROWS:
            assert torch.equal(weight.apply(x[-rows:], ops), whole[-rows:])


@native
@pytest.mark.parametrize(("inputs", "outputs"), [(31, 33), (588, 40), (96, 100), (200, 16), (64, 7)], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_every_number_of_rows(inputs: int, outputs: int, threads: int) -> None:
    """1 to 70 of them, which fill tiles of rows or do not, of inputs and outputs that mostly do not either."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    matrix, bias = matrix_and_bias(inputs, outputs, torch.bfloat16)
    x = noise(70, inputs, seed=3, dtype=torch.bfloat16)
    exact = x.double() @ matrix.double().T + bias.double()
    for weight in (OURS.store([Dense(matrix)], bias), OURS.store_int8([Dense(matrix)], bias)):
        whole = weight.apply(x, OURS)
        tolerance = 2.0**-8 * exact.abs() + (1e-5 if isinstance(weight, PackedWeight) else 0.1)
        assert ((whole.double() - exact).abs() <= tolerance).all()
        for rows in range(1, 70):
            assert torch.equal(weight.apply(x[:rows], OURS), whole[:rows])
            assert torch.equal(weight.apply(x[rows:], OURS), whole[rows:])
    torch.set_num_threads(before)


@native
@pytest.mark.parametrize("size", [1e30, 1e-30, 1e-38, 1e-40])
def test_products_of_large_tiny_and_denormal_numbers(size: float) -> None:
    """What is below the least normal number of float32 may count as nothing."""
    matrix, _ = matrix_and_bias(70, 33, torch.bfloat16)
    x = (noise(40, 70, seed=3) * size).bfloat16()
    exact = x.double() @ matrix.double().T
    for rows in (1, 3, 40):
        found = OURS.store([Dense(matrix)], None).apply(x[:rows], OURS).double()
        assert ((found - exact[:rows]).abs() <= 2.0**-8 * exact[:rows].abs() + 1e-5 * size + 70 * 2.0**-126).all()


@native
@pytest.mark.parametrize("inputs", [64, 70])
def test_what_is_no_number_spoils_its_own_row_alone(inputs: int) -> None:
    """Rows beside it stand where a tile of inputs ends."""
    matrix, bias = matrix_and_bias(inputs, 33, torch.bfloat16)
    x = noise(40, inputs, seed=3, dtype=torch.bfloat16)
    expected, spoilt = OURS.store([Dense(matrix)], bias).apply(x, OURS), x.clone()
    spoilt[5, 0], spoilt[20, -1] = float("nan"), float("inf")
    found = OURS.store([Dense(matrix)], bias).apply(spoilt, OURS)
    others = [row for row in range(40) if row not in (5, 20)]
    assert torch.equal(found[others], expected[others])
    assert not found[[5, 20]].isfinite().any()


@native
def test_torchs_own_products_between_ours_change_nothing() -> None:
    """Both may use registers that have to be set up first, each in its own way."""
    matrix, bias = matrix_and_bias(128, 64, torch.bfloat16)
    x = noise(64, 128, seed=3, dtype=torch.bfloat16)
    kept = [OURS.store([Dense(matrix)], bias), OURS.store_int8([Dense(matrix)], bias)]
    expected = [torch.nn.functional.linear(x, matrix, bias), *(weight.apply(x, OURS) for weight in kept)]
    for _ in range(20):
        found = [weight.apply(x, OURS) for weight in kept]
        assert torch.equal(torch.nn.functional.linear(x, matrix, bias), expected[0])
        assert all(map(torch.equal, found, expected[1:]))


@both_dtypes
@shapes
def test_leading_axes_and_gaps_make_no_difference(inputs: int, outputs: int, dtype: torch.dtype) -> None:
    wide = noise(3, 4, 2 * inputs, seed=4, dtype=dtype)[..., :inputs]
    for ops, weight in forms(inputs, outputs, dtype):
        flat = weight.apply(wide.reshape(12, inputs), ops)
        assert torch.equal(weight.apply(wide, ops), flat.view(3, 4, outputs))
        assert weight.apply(wide[:0], ops).shape == (0, 4, outputs)


@both_dtypes
@shapes
def test_gelu_of_a_product_is_the_product_and_its_gelu(inputs: int, outputs: int, dtype: torch.dtype) -> None:
    for ops, weight in forms(inputs, outputs, dtype):
        for rows in ROWS:
            x = 3 * noise(rows, inputs, seed=7 + rows, dtype=dtype)
            assert torch.equal(ops.linear_gelu(x, weight), ops.gelu(weight.apply(x, ops)))


@native
@both_dtypes
@shapes
def test_int8_kernel_sums_exactly(inputs: int, outputs: int, dtype: torch.dtype) -> None:
    """With scales of 1 the results are the sums themselves, as long as float32 holds them."""
    matrix = torch.randint(-127, 128, (outputs, inputs), generator=torch.Generator().manual_seed(5))
    matrix[:, 0] = 127
    weight = OURS.store_int8([Dense(matrix.to(dtype))], None)
    assert isinstance(weight, PackedInt8Weight)
    for rows in ROWS:
        x = torch.randint(-127, 128, (rows, inputs), generator=torch.Generator().manual_seed(rows))
        x[:, -1] = -127
        found = weight.apply(x.to(dtype), OURS)
        assert torch.equal(found, (x @ matrix.T).float().to(dtype))


@native
@both_dtypes
@shapes
def test_int8_kernel_is_the_plain_one(inputs: int, outputs: int, dtype: torch.dtype) -> None:
    matrix, bias = matrix_and_bias(inputs, outputs, dtype)
    ours, plain = OURS.store_int8([Dense(matrix)], bias), as_it_came([rounded_to_int8(Dense(matrix))], bias)
    assert isinstance(ours, PackedInt8Weight)
    assert torch.equal(ours.scales, plain.form.scales)
    for rows in ROWS:
        x = noise(rows, inputs, seed=10 + rows, dtype=dtype) * rows
        found, expected = ours.apply(x, OURS).float(), plain.apply(x, Ops()).float()
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=2**-8 if dtype == torch.bfloat16 else 1e-5)


def test_plain_int8_sums_are_exact_where_float32_would_round() -> None:
    rows, matrix = torch.full((2, 3001), 127, dtype=torch.int8), torch.full((3, 3001), -127, dtype=torch.int8)
    rows[1, 2500] = 126
    expected = torch.tensor([[-3001 * 127 * 127] * 3, [-3001 * 127 * 127 + 127] * 3], dtype=torch.int32)
    assert torch.equal(int8_sums(rows, matrix), expected)


def test_rows_are_rounded_to_even_and_zeros_have_a_scale() -> None:
    rounded, scales = quantise_rows(torch.tensor([[127.0, -2.5, 3.5, 0.4], [0.0] * 4, [-254.0, 1.0, 3.0, 5.0]]))
    assert rounded.tolist() == [[127, -2, 4, 0], [0] * 4, [-127, 0, 2, 2]]
    assert scales[0, 0] == 1
    assert scales[2, 0] == 2


@both_dtypes
def test_int8_of_what_is_no_number_is_no_number(dtype: torch.dtype) -> None:
    matrix, bias = matrix_and_bias(33, 17, dtype)
    x = noise(3, 33, seed=6, dtype=dtype)
    x[1, 5], x[2, 5] = float("nan"), float("inf")
    for ops in (OURS, Ops()):
        found = ops.store_int8([Dense(matrix)], bias).apply(x, ops)
        assert found[0].isfinite().all()
        assert not found[1:].isfinite().any()


@both_dtypes
@pytest.mark.parametrize("form", ["store", "store_int8"])
def test_shapes_alone_count_the_same_bytes(dtype: torch.dtype, form: str) -> None:
    matrix, bias = matrix_and_bias(33, 17, dtype)
    for ops in (OURS, Ops()):
        store = getattr(ops, form)
        assert store([Dense(matrix.to("meta"))], bias.to("meta")).nbytes == store([Dense(matrix)], bias).nbytes


@both_dtypes
@pytest.mark.parametrize("form", ["store", "store_int8"])
@pytest.mark.parametrize("sizes", [(32, 16, 5), (16, 48), (17, 16), (3, 4, 5)])
def test_a_matrix_in_parts_is_the_whole_one(dtype: torch.dtype, form: str, sizes: tuple[int, ...]) -> None:
    """Parts that fill whole panels, and parts that do not."""
    matrix, bias = matrix_and_bias(514, sum(sizes), dtype)
    x = noise(3, 514, seed=7, dtype=dtype)
    for ops in (OURS, Ops()):
        store = getattr(ops, form)
        whole, parts = store([Dense(matrix)], bias), store([Dense(part.clone()) for part in matrix.split(sizes)], bias)
        assert parts.nbytes == whole.nbytes
        assert torch.equal(parts.apply(x, ops), whole.apply(x, ops))


def test_int8_keeps_about_half_of_bfloat16() -> None:
    matrix, _ = matrix_and_bias(896, 640, torch.bfloat16)
    for ops in (OURS, Ops()):
        assert ops.store_int8([Dense(matrix)], None).nbytes <= matrix.nbytes // 2 + 8 * 640
