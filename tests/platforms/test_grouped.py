"""Stored forms that checkpoints bring along, in the CPU's own kernels, at all levels of instructions that there are."""

from __future__ import annotations

import os
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tilewise.platforms.cpu import find_kernels
from tilewise.platforms.cpu.machine import Machine
from tilewise.platforms.cpu.native import NoKernels
from tilewise.platforms.cpu.native.capture import Arena, capture
from tilewise.platforms.cpu.native_ops import NativeCpuOps
from tilewise.platforms.cpu.packed import PackedGrouped, PackedInt8Weight
from tilewise.platforms.forms import Codes, Grouped, Int8, StaticRows, packed_nibbles
from tilewise.platforms.weights import quantise_rows

levels = pytest.mark.parametrize("level", ["avx2", "avx512", "1"] if "avx512f" in Machine.here().features else ["avx2"])
"""Levels that are tried. On a CPU with nothing above AVX2 they are all the same code, and one is enough."""
kinds = pytest.mark.parametrize("kind", list(Codes), ids=lambda kind: kind.name)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
ROWS = (1, 2, 3, 5, 8, 11, 17, 33, 40)
SHAPES = ((70, 33, 32), (514, 17, 64), (300, 50, 300), (258, 130, 128), (22, 31, 2), (1, 3, 128), (96, 16, 16))
"""Inputs, outputs, and inputs of a group."""


@cache
def ops_of(level: str) -> NativeCpuOps:
    try:
        return NativeCpuOps(find_kernels({**os.environ, "TILEWISE_CPU_KERNELS": level}))
    except NoKernels as reason:
        pytest.skip(str(reason))


def numbers(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=numbers(seed))


def grouped(kind: Codes, inputs: int, outputs: int, group: int, shifts: str = "", ordered: bool = False) -> Grouped:
    """`shifts`: none, "zeros" of scales that half precision holds, or any "floats"."""
    inputs += inputs % 2 if kind.bits == 4 else 0
    groups = -(-inputs // group)
    codes = torch.randint(0, 2**kind.bits, (outputs, inputs), dtype=torch.uint8, generator=numbers(1))
    if kind is Codes.FP8:
        codes[(codes & 127) == 127] = 5  # no NaN
    signs = torch.randint(2, (outputs, groups), generator=numbers(4)) * 2 - 1  # AutoRound writes some below zero
    scales = (torch.rand(outputs, groups, generator=numbers(2)) / 100 + 1e-3) * signs
    offsets = None
    if shifts == "zeros":
        scales = scales.half().float()
        offsets = -torch.randint(0, 2**kind.bits, (outputs, groups), generator=numbers(3)) * scales
    elif shifts == "floats":
        offsets = noise(outputs, groups, seed=3) / 100
    order = torch.randperm(inputs, generator=numbers(4)) if ordered else None
    return Grouped(kind, packed_nibbles(codes) if kind.bits == 4 else codes, scales, offsets, group, order)


def assert_product(found: Tensor, x: Tensor, matrix: Tensor, bias: Tensor | None) -> None:
    """Within 1e-5 of the products' sizes; bfloat16 rounds numbers of a matrix by a 256th, and results."""
    exact, sizes = x.double() @ matrix.double().T, x.double().abs() @ matrix.double().abs().T
    if bias is not None:
        exact, sizes = exact + bias.double(), sizes + bias.double().abs()
    tolerance = 1e-5 * sizes
    if x.dtype == torch.bfloat16:
        tolerance = tolerance + 2.0**-8 * (sizes + exact.abs())
    assert found.dtype == x.dtype
    assert ((found.double() - exact).abs() <= tolerance).all()


@levels
@kinds
@both_dtypes
@pytest.mark.parametrize(("shifts", "ordered"), [("", False), ("zeros", True), ("floats", False)])
def test_products_are_those_of_the_dequantised_matrix(
    level: str, kind: Codes, dtype: torch.dtype, shifts: str, ordered: bool
) -> None:
    ops = ops_of(level)
    for inputs, outputs, group in SHAPES:
        form = grouped(kind, inputs, outputs, group, shifts, ordered)
        bias = None if ordered else noise(outputs, seed=6).to(dtype)
        matrix = form.dequantised()
        for one_way in (False, True):
            weight = PackedGrouped.of(ops.native, form, bias, one_way)
            assert weight is not None
            for rows in ROWS:
                x = noise(rows, form.shape[1], seed=rows).to(dtype)
                assert_product(weight.apply(x, ops), x, matrix, bias)


@levels
@pytest.mark.parametrize("kind", [Codes.UINT4, Codes.INT4])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_few_rows_lose_no_more_than_bfloat16_does(level: str, kind: Codes, rows: int) -> None:
    """Numbers of many sizes in one group; what parts of int8 leave away is far below what rounding a result does."""
    ops = ops_of(level)
    for inputs, group, shifts in ((640, 128, "zeros"), (96, 32, ""), (1100, 1100, "floats"), (70, 32, "floats")):
        form = grouped(kind, inputs, 48, group, shifts, ordered=inputs == 96)
        weight = PackedGrouped.of(ops.native, form, None)
        assert weight is not None
        x = (
            noise(rows, inputs, seed=rows) * 2.0 ** torch.randint(-9, 4, (rows, inputs), generator=numbers(7))
        ).bfloat16()
        matrix = form.dequantised().double()
        exact = x.double() @ matrix.T
        rounding = 2.0**-8 * exact.abs() + 2.0**-15 * x.double().abs().amax(1, keepdim=True) * matrix.abs().sum(1)
        assert ((weight.apply(x, ops).double() - exact).abs() <= rounding).all()


@pytest.mark.parametrize("form", [grouped(Codes.INT4, 70, 33, 32), grouped(Codes.FP8, 70, 33, 70, "floats", True)])
def test_rows_of_half_precision_are_multiplied_in_float32(form: Grouped) -> None:
    ops, x = ops_of("1"), noise(3, 70, seed=1).half()
    weight = PackedGrouped.of(ops.native, form, None)
    assert weight is not None
    assert torch.equal(weight.apply(x, ops), weight.apply(x.float(), ops).half())


@levels
@kinds
def test_every_code_is_its_number(level: str, kind: Codes) -> None:
    """Rows of the identity give the matrix itself, however many they are."""
    ops = ops_of(level)
    codes = torch.arange(2**kind.bits, dtype=torch.uint8).repeat(3, 1)
    if kind is Codes.FP8:
        codes[(codes & 127) == 127] = 0
    codes = packed_nibbles(codes) if kind.bits == 4 else codes
    form = Grouped(kind, codes, torch.tensor([[1.0], [0.5], [-2.0]]), None, 2**kind.bits)
    weight = PackedGrouped.of(ops.native, form, None)
    assert weight is not None
    x = torch.eye(2**kind.bits)
    assert torch.equal(weight.apply(x, ops).T, form.dequantised())
    assert torch.equal(torch.cat([weight.apply(row, ops) for row in x.split(1)]).T, form.dequantised())


@levels
@both_dtypes
@pytest.mark.parametrize("kind", [Codes.INT4, Codes.FP4, Codes.UINT8], ids=lambda kind: kind.name)
@pytest.mark.parametrize("threads", [1, 2])
def test_in_one_way_a_row_is_the_same_bit_by_bit_in_any_batch(
    level: str, dtype: torch.dtype, kind: Codes, threads: int
) -> None:
    ops, before = ops_of(level), torch.get_num_threads()
    torch.set_num_threads(threads)
    weight = PackedGrouped.of(ops.native, grouped(kind, 520, 130, 128, "floats"), None, one_way=True)
    assert weight is not None
    x = noise(70, 520, seed=3).to(dtype)
    whole = weight.apply(x, ops)
    for rows in range(1, 70):
        assert torch.equal(weight.apply(x[:rows], ops), whole[:rows])
        assert torch.equal(weight.apply(x[rows:], ops), whole[rows:])
    torch.set_num_threads(before)


@levels
@both_dtypes
@pytest.mark.parametrize("rows", [3, 40])
def test_what_is_no_number_spoils_its_own_row_alone(level: str, dtype: torch.dtype, rows: int) -> None:
    ops = ops_of(level)
    weight = PackedGrouped.of(ops.native, grouped(Codes.INT4, 70, 33, 32, "floats"), None)
    assert weight is not None
    x = noise(rows, 70, seed=3).to(dtype)
    expected = weight.apply(x, ops)
    x[1, 0], x[2, -1] = float("nan"), float("inf")
    found = weight.apply(x, ops)
    others = [row for row in range(rows) if row not in (1, 2)]
    assert torch.equal(found[others], expected[others])
    assert found[1].isnan().all()
    assert not found[2].isfinite().any()


@levels
@pytest.mark.parametrize("rows", [1, 40])
def test_a_code_that_is_no_number_makes_its_output_none(level: str, rows: int) -> None:
    ops, form = ops_of(level), grouped(Codes.FP8, 70, 33, 70)
    form.codes[4, 9] = 0xFF
    weight = PackedGrouped.of(ops.native, form, None)
    assert weight is not None
    found = weight.apply(noise(rows, 70, seed=3), ops).isnan()
    assert found[:, 4].all()
    assert found.sum() == rows


@levels
@both_dtypes
def test_gelu_of_a_product_is_the_product_and_its_gelu(level: str, dtype: torch.dtype) -> None:
    ops = ops_of(level)
    weight = PackedGrouped.of(ops.native, grouped(Codes.UINT4, 70, 33, 32, "zeros"), noise(33, seed=1).to(dtype))
    assert weight is not None
    for rows in ROWS:
        x = 30 * noise(2, rows, 140, seed=rows).to(dtype)[..., :70]
        assert torch.equal(ops.linear_gelu(x, weight), ops.gelu(weight.apply(x, ops)))


@levels
@pytest.mark.parametrize("ordered", [False, True])
def test_captured_products_read_new_numbers(level: str, ordered: bool) -> None:
    ops = ops_of(level)
    weight = PackedGrouped.of(ops.native, grouped(Codes.INT4, 70, 33, 32, "", ordered), None)
    assert weight is not None
    x = noise(3, 70, seed=1)
    step = capture(ops.native, Arena(), lambda: weight.apply(x, ops))
    x.copy_(noise(3, 70, seed=2))
    assert torch.equal(step.replay(), weight.apply(x, ops))


def test_bytes_are_those_of_short_scales_and_of_shapes_at_most() -> None:
    native = ops_of("1").native
    for shifts, bits in (("", 4 + 32 / 128), ("zeros", 4 + 24 / 128), ("floats", 4 + 64 / 128)):
        form = grouped(Codes.UINT4, 1024, 160, 128, shifts)
        weight = PackedGrouped.of(native, form, None)
        assert weight is not None
        assert weight.nbytes == 1024 * 160 * bits / 8
        meta = (None if x is None else x.to("meta") for x in (form.codes, form.scales, form.shifts))
        codes, scales, offsets = meta
        assert codes is not None
        assert scales is not None
        shapes = PackedGrouped.of(native, Grouped(form.kind, codes, scales, offsets, form.group), None)
        assert shapes is not None
        assert weight.nbytes <= shapes.nbytes <= 1024 * 160 * (4 + (64 if shifts else 32) / 128) / 8


def levels_form(inputs: int, outputs: int, static: StaticRows | None) -> Int8:
    matrix = torch.randint(-128, 128, (outputs, inputs), generator=numbers(5), dtype=torch.int8)
    matrix[:, 0] = -128
    scales = torch.rand(outputs, generator=numbers(6)) / 1000 + 1e-4
    addend = torch.randint(-99999, 99999, (outputs,), generator=numbers(7), dtype=torch.int32) if static else None
    return Int8(matrix, scales, static, addend)


@levels
@both_dtypes
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (33, 17), (516, 48), (1030, 31)])
@pytest.mark.parametrize("static", [StaticRows(0.037, 11), StaticRows(0.5, -128), StaticRows(0.02, 0)], ids=str)
def test_static_rows_are_summed_exactly(
    level: str, dtype: torch.dtype, inputs: int, outputs: int, static: StaticRows
) -> None:
    """Against int64 sums of rows that torch has rounded; some of them are cut off at both ends."""
    ops, form = ops_of(level), levels_form(inputs, outputs, static)
    bias = noise(outputs, seed=8).to(dtype)
    weight = PackedInt8Weight.of(ops.native, form, bias)
    assert weight is not None
    assert form.addend is not None
    for rows in ROWS:
        x = (3 * noise(rows, inputs, seed=rows)).to(dtype)
        scale = torch.full_like(x, static.scale, dtype=torch.float32)
        rounded = ((x.float() / scale).round() + static.offset).clamp(-128, 127).long()
        exact = (rounded @ form.matrix.long().T + form.addend).double() * form.scales.double() + bias.double()
        tolerance = 1e-6 + exact.abs() * (2.0**-8 if dtype == torch.bfloat16 else 1e-6)
        assert ((weight.apply(x, ops).double() - exact).abs() <= tolerance).all()


@levels
@both_dtypes
def test_levels_meet_rows_of_their_own_scales(level: str, dtype: torch.dtype) -> None:
    ops, form = ops_of(level), levels_form(516, 33, None)
    weight = PackedInt8Weight.of(ops.native, form, None)
    assert weight is not None
    assert weight.nbytes >= form.matrix.nbytes + 8 * 33
    for rows in ROWS:
        x = noise(rows, 516, seed=rows).to(dtype)
        rounded, scales = quantise_rows(x)
        exact = (rounded.long() @ form.matrix.long().T).double() * scales.double() * form.scales.double()
        tolerance = 1e-6 + exact.abs() * (2.0**-8 if dtype == torch.bfloat16 else 1e-6)
        assert ((weight.apply(x, ops).double() - exact).abs() <= tolerance).all()


@levels
@pytest.mark.parametrize("rows", [3, 20])
def test_static_rows_keep_what_is_no_number_apart(level: str, rows: int) -> None:
    ops, form = ops_of(level), levels_form(70, 33, StaticRows(0.1, 3))
    weight = PackedInt8Weight.of(ops.native, form, None)
    assert weight is not None
    x = noise(rows, 70, seed=1)
    expected = weight.apply(x, ops)
    x[1, 5] = float("nan")
    found = weight.apply(x, ops)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, *range(2, rows)]], expected[[0, *range(2, rows)]])


def test_levels_of_shapes_alone_count_the_same_bytes() -> None:
    native, form = ops_of("1").native, levels_form(70, 33, StaticRows(0.1, 3))
    assert form.addend is not None
    shapes = Int8(form.matrix.to("meta"), form.scales.to("meta"), form.static, form.addend.to("meta"))
    found = [PackedInt8Weight.of(native, one, None) for one in (form, shapes)]
    assert all(one is not None for one in found)
    assert all(a.nbytes == b.nbytes for a, b in pairwise(found) if a and b)
