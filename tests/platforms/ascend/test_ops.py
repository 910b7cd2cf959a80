"""Ops of an NPU against the reference, in what a card takes: halves, heads of whole lanes, blocks of 128 tokens.

`tests/platforms/test_ops.py` tries them in float32 and small sizes as well, with all other platforms' ops.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.platforms.ascend.device import CheckingPlatform, interface, strict_ops
from tests.platforms.ascend.stand_ins import HALVES
from tilewise.platforms.ascend.npu_ops import AscendOps
from tilewise.platforms.ascend.weights import AscendExpert, AscendInt8Weight, NzLayout
from tilewise.platforms.forms import Codes, Dense, Grouped, Int8, StaticRows
from tilewise.platforms.kv_cache import PagedLayout, QuantisedCache, empty_cache
from tilewise.platforms.ops import OPS, AttentionSize, Ops, overrides
from tilewise.platforms.trial import CASES, CaseContext, try_case
from tilewise.platforms.weights import DenseWeight, Int8Weight, Use, nbytes_of, quantise_rows

pytestmark = pytest.mark.usefixtures("strict")
BLOCK = 128
halves = pytest.mark.parametrize("dtype", HALVES, ids=str)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(found: Tensor, expected: Tensor, tolerance: float = 2e-2) -> None:
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    torch.testing.assert_close(found.double(), expected.double(), atol=tolerance, rtol=tolerance)


def layout_of(count: int) -> PagedLayout:
    return CaseContext(Ops(), torch.device("cpu"), torch.bfloat16, BLOCK).layout([count], [count])


@halves
@pytest.mark.parametrize("name", CASES)
def test_ops_are_the_reference_ops(name: str, dtype: torch.dtype) -> None:
    """What `tilewise doctor --ops` tries on a card."""
    report = try_case(name, CheckingPlatform(), strict_ops(), dtype)
    assert report.verdict == "right", report


@halves
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("nz", NzLayout)
def test_products_of_int8_with_rows_rounded_as_they_come(dtype: torch.dtype, with_bias: bool, nz: NzLayout) -> None:
    x, bias = noise(2, 7, 64, dtype=dtype), noise(48, seed=2, dtype=dtype) if with_bias else None
    form = Int8(*(part.squeeze(-1) for part in quantise_rows(noise(48, 64, seed=1))))
    x[1, 3] = 0
    weight = strict_ops(nz).store([form], bias)
    assert isinstance(weight, AscendInt8Weight)
    assert weight.form.matrix.untyped_storage().nbytes() == 0, "the matrix is kept once"
    close(weight.apply(x, strict_ops()), Int8Weight(form, bias).apply(x, Ops()))


@halves
def test_products_of_int8_by_calibrated_scales(dtype: torch.dtype) -> None:
    """As ModelSlim writes them: deq_scale, and quant_bias with the bias and the offset of rows in it.

    The kernel rounds behind the offset, the reference before it: that differs at halves, of which there are none here.
    """
    matrix, scales = quantise_rows(noise(48, 64, seed=1))
    static, addend = StaticRows(0.0497, -3), torch.randint(-500, 500, (48,), dtype=torch.int32)
    form = Int8(matrix, 0.0497 * scales[:, 0], static, addend)
    x = noise(7, 64, dtype=dtype)
    close(strict_ops().store([form], None).apply(x, strict_ops()), Int8Weight(form, None).apply(x, Ops()))


def test_sums_of_int8_are_those_of_the_reference() -> None:
    """With scales of one, results are the sums themselves: equal to the last bit, for rows without a tie."""
    matrix = torch.randint(-127, 128, (32, 64), dtype=torch.int8, generator=torch.Generator().manual_seed(1))
    addend = torch.randint(-99, 99, (32,), dtype=torch.int32)
    form = Int8(matrix, torch.ones(32), StaticRows(1.0, 0), addend)
    x = torch.randint(-9, 10, (5, 64), generator=torch.Generator().manual_seed(2)).bfloat16()
    found = strict_ops().store([form], None).apply(x, strict_ops())
    assert torch.equal(found, ((x.int() @ matrix.T.int()) + addend).bfloat16())


@pytest.mark.parametrize("kind", ["floats", "int8"])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("here", [range(5), range(1, 4)], ids=["all experts", "some experts"])
def test_experts_together(kind: str, with_bias: bool, here: range) -> None:
    dtype, hidden, inner, count = torch.bfloat16, 64, 32, 5
    x, chosen = noise(9, hidden, dtype=dtype), noise(9, count, seed=5).topk(2).indices
    weights = noise(9, 2, seed=6).softmax(-1)

    def experts(ops: Ops, outputs: int, inputs: int, seed: int) -> list[Any]:
        matrices, biases = (
            noise(count, outputs, inputs, seed=seed, dtype=dtype) / 8,
            noise(count, outputs, dtype=dtype) / 8,
        )
        store = ops.store if kind == "floats" else ops.store_int8
        kept = [
            store([Dense(matrix)], bias if with_bias else None, Use.EXPERT)
            for matrix, bias in zip(matrices, biases, strict=True)
        ]
        return [weight if number in here else None for number, weight in enumerate(kept)]

    results = []
    for ops in (strict_ops(), Ops()):
        layers = experts(ops, 2 * inner, hidden, 1), experts(ops, hidden, inner, 2)
        results.append(ops.moe_experts(x, chosen, weights, *layers, ops.silu_mul))
        if isinstance(ops, AscendOps):
            (first, *_), (second, *_) = ([one for one in layer if one is not None] for layer in layers)
            assert isinstance(first, AscendExpert)
            assert first.matrix._base is not None, "an expert's matrix is a part of its stack"
            assert second.nbytes == nbytes_of(second.matrix, second.scales, second.bias)
    close(*results, tolerance=5e-2)


def test_forms_without_a_kernel_are_kept_in_plain_torch() -> None:
    codes = Grouped(Codes.INT8, torch.zeros(8, 32, dtype=torch.uint8), torch.ones(8, 1), None, 32)
    assert type(strict_ops().store([codes], None)) is type(Ops().store([codes], None))
    assert isinstance(strict_ops().store([Dense(noise(8, 32))], None), DenseWeight)
    kept = strict_ops(NzLayout.ALL).store([Dense(matrix := noise(8, 32))], None)
    assert isinstance(kept, DenseWeight)
    assert kept.matrix is not matrix, "a matrix in the NZ layout is another one"


def test_a_layout_that_is_refused_is_said_once_and_not_taken(monkeypatch: Any, caplog: Any) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("format cast failed\nmore of it")

    monkeypatch.setattr("tilewise.platforms.ascend.weights.npu", type("npu", (), {"npu_format_cast": refuse}))
    matrix = noise(8, 32)
    with caplog.at_level(logging.WARNING, "tilewise"):
        assert strict_ops(NzLayout.ALL).store([Dense(matrix)], None).matrix is matrix
    assert caplog.messages == ["NPU: a matrix [8, 32] keeps its layout, NZ is refused: format cast failed"]


def test_what_kernels_do_not_take_is_left_to_torch() -> None:
    ops = strict_ops()
    before = {name: len(calls) for name, calls in interface().calls.items()}
    wide, odd = noise(3, 2, 64), noise(3, 2, 24, dtype=torch.bfloat16)
    for query in (wide, odd):
        layout, cache = layout_of(3), noise(2, 2, BLOCK, 1, query.shape[-1]).to(query.dtype)
        close(ops.paged_attention(query, cache, layout, 0.1), Ops().paged_attention(query, cache, layout, 0.1))
        close(ops.dense_attention(query[None], query[None], query[None], 0.1), query[None], 9)
    layout = layout_of(3)
    quantised = empty_cache((2, 2, BLOCK, 1, 64), torch.int8, torch.device("cpu"))
    assert isinstance(quantised, QuantisedCache)
    key, angles = noise(3, 1, 64, dtype=torch.bfloat16), noise(3, 32)
    turned = ops.rope_into_cache(key, key, key, angles.cos(), angles.sin(), quantised, layout)
    ops.paged_attention(turned, quantised, layout, 0.1)
    attention = "npu_fused_infer_attention_score"
    assert len(interface().calls.get(attention, ())) == before.get(attention, 0)
    half = AttentionSize(3, 3, 2, 1, 64, 2)
    assert ops.paged_scratch(half) == 0 < ops.paged_scratch(AttentionSize(3, 3, 2, 1, 64, 4))


def test_a_kernel_that_fails_is_left_out_and_said_once(monkeypatch: Any, caplog: Any) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("EZ9999: inner error\nmore of it")

    monkeypatch.setattr("tilewise.platforms.ascend.npu_ops.npu", type("npu", (), {"npu_swiglu": fail}))
    ops, x = AscendOps(), noise(3, 8)
    with caplog.at_level(logging.WARNING, "tilewise"):
        found = [ops.silu_mul(x) for _ in range(2)]
    assert all(torch.equal(one, Ops().silu_mul(x)) for one in found)
    assert caplog.messages == ["NPU kernels: silu_mul is left to torch, as ours fails: EZ9999: inner error"]


def test_every_op_has_a_kernel_or_is_named_here() -> None:
    of_torch = {"linear", "layer_norm", "gelu", "linear_gelu", "add_scaled", "add_layer_norm"}
    of_torch |= {"choose_experts", "draw", "patchify", "scatter_rows"}
    assert {name for name in OPS if overrides(AscendOps, name)} == set(OPS) - of_torch
