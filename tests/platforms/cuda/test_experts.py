"""The grouped product of experts against the reference op, of every form in which a matrix is kept."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from tilewise.platforms.cuda import A100, H100
from tilewise.platforms.cuda.kernels import experts
from tilewise.platforms.cuda.kernels.experts import ExpertTable, FusedActivation, moe_experts
from tilewise.platforms.cuda.triton_ops import TritonOps
from tilewise.platforms.fallback import ExpertTables
from tilewise.platforms.forms import Codes, Dense, Form, Grouped, Int8, StaticRows
from tilewise.platforms.ops import ExpertSize, Ops
from tilewise.platforms.weights import GroupedWeight, Int8Weight, SideBySide, Weight, plain_weight, rounded_to_int8

pytestmark = pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow", "ignore:divide by zero")
"""Rows of absent experts hold whatever was in memory, of which numpy warns."""
REFERENCE = Ops()
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Of the largest number: of the 16-bit ones one or two last places, as the reference rounds more often."""
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
Forms = Callable[[int, int, torch.dtype, torch.Generator], Form]


def dense(outputs: int, inputs: int, dtype: torch.dtype, generator: torch.Generator) -> Form:
    return Dense((torch.randn(outputs, inputs, generator=generator) / inputs**0.5).to(dtype))


def large(outputs: int, inputs: int, dtype: torch.dtype, generator: torch.Generator) -> Form:
    """Activations are clamped."""
    return Dense(9 * dense(outputs, inputs, dtype, generator).tensors[0])


def int8(outputs: int, inputs: int, dtype: torch.dtype, generator: torch.Generator) -> Form:
    return rounded_to_int8(dense(outputs, inputs, dtype, generator))


def grouped(kind: Codes, group: int, shifted: bool = False) -> Forms:
    def form(outputs: int, inputs: int, dtype: torch.dtype, generator: torch.Generator) -> Form:
        """Any codes but those of NaN, with scales that make for numbers as large as those of `dense`."""
        codes = torch.randint(0, 256, (outputs, inputs * kind.bits // 8), dtype=torch.uint8, generator=generator)
        if kind == Codes.FP8:
            codes[codes & 127 == 127] = 0
        groups = -(-inputs // group)
        scales = torch.rand(outputs, groups, generator=generator) / float(kind.table().nan_to_num().std()) / inputs**0.5
        shifts = torch.rand(outputs, groups, generator=generator) / inputs if shifted else None
        return Grouped(kind, codes, scales, shifts, group)

    return form


def layer(
    form: Forms,
    dtype: torch.dtype,
    device: torch.device,
    count: int,
    size: tuple[int, int],
    biases: bool,
    absent: Sequence[int],
) -> tuple[list[Weight | None], list[Weight | None]]:
    """Experts of this size (hidden, inner): gate_up and down."""
    generator = torch.Generator().manual_seed(1)
    hidden, inner = size

    def one(expert: int, outputs: int, inputs: int) -> Weight | None:
        own = form(outputs, inputs, dtype, generator)
        bias = torch.randn(outputs, generator=generator).to(device, dtype) if biases else None
        fields = {name: getattr(own, name) for name in own.__slots__}
        moved = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in fields.items()}
        return None if expert in absent else plain_weight([type(own)(**moved)], bias)

    every = range(count)
    return [one(expert, 2 * inner, hidden) for expert in every], [one(expert, hidden, inner) for expert in every]


def choices(tokens: int, count: int, per_token: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    chosen = torch.rand(tokens, count, generator=generator).topk(per_token).indices
    return chosen, torch.randn(tokens, per_token, generator=generator).softmax(-1)


def check(
    form: Forms,
    dtype: torch.dtype,
    device: torch.device,
    chosen: Tensor,
    weights: Tensor,
    count: int = 5,
    size: tuple[int, int] = (40, 24),
    biases: bool = False,
    absent: Sequence[int] = (),
    activation: Callable[[Tensor], Tensor] = REFERENCE.silu_mul,
    gate: FusedActivation | None = None,
) -> None:
    gate_up, down = layer(form, dtype, device, count, size, biases, absent)
    x = torch.randn(len(chosen), size[0] + 8, generator=torch.Generator().manual_seed(3)).to(device, dtype)[
        :, : size[0]
    ]
    chosen, weights = chosen.to(device), weights.to(device)
    tables = ExpertTable.of(gate_up), ExpertTable.of(down)
    assert tables[0] is not None
    assert tables[1] is not None
    found = moe_experts(x, chosen, weights, tables[0], tables[1], gate or activation, H100)
    right = REFERENCE.moe_experts(x, chosen, weights, gate_up, down, activation)
    assert found.dtype == dtype
    atol = TOLERANCE[dtype] * float(right.abs().max()) if right.numel() else 0.0
    torch.testing.assert_close(found, right, rtol=TOLERANCE[dtype], atol=atol)


def test_choices_may_lie_in_any_order_in_memory(device: torch.device) -> None:
    chosen, weights = choices(7, 5, 2)
    check(dense, torch.float32, device, chosen.T.contiguous().T, weights.T.contiguous().T, absent=[0, 3])


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch's profiler counts the CPU's memory")
@pytest.mark.parametrize("form", [dense, int8], ids=["dense", "int8"])
def test_all_choices_take_what_the_formula_says(form: Forms) -> None:
    tokens, count, per_token, hidden, inner = 40, 5, 3, 64, 96
    gate_up, down = layer(form, torch.bfloat16, torch.device("cpu"), count, (hidden, inner), False, [])
    x, ops = torch.randn(tokens, hidden).bfloat16(), TritonOps(H100)
    choice = *choices(tokens, count, per_token), gate_up, down, ops.silu_mul
    ops.moe_experts(x, *choice)  # once, as its tables stay
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as found:
        ops.moe_experts(x, *choice)
    events = (
        (event.start_ns(), event.nbytes())
        for event in found.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    peak = max(itertools.accumulate(change for _, change in sorted(events))) - x.nbytes
    assert not ops.left_out
    assert peak <= ops.moe_scratch(ExpertSize(tokens, per_token, hidden, inner, 2)) <= 2 * peak


@dtypes
@pytest.mark.parametrize("form", [dense, int8, grouped(Codes.FP4, 32)], ids=["dense", "int8", "fp4"])
def test_dtypes(form: Forms, dtype: torch.dtype, device: torch.device) -> None:
    check(form, dtype, device, *choices(7, 5, 2), biases=True, absent=[3])


@pytest.mark.parametrize(
    ("kind", "group", "shifted"),
    [
        (Codes.UINT4, 32, True),
        (Codes.INT4, 16, False),
        (Codes.INT4, 40, False),
        (Codes.INT4, 6, True),
        (Codes.UINT8, 64, True),
        (Codes.INT8, 10, False),
        (Codes.FP8, 128, False),
    ],
    ids=str,
)
def test_codes(kind: Codes, group: int, shifted: bool, device: torch.device) -> None:
    """Groups that blocks of inputs hold several of, cut, or do not begin with."""
    check(grouped(kind, group, shifted), torch.float32, device, *choices(5, 3, 2), count=3, size=(40, 36))


@pytest.mark.parametrize(("tokens", "count", "per_token"), [(1, 1, 1), (1, 9, 8), (3, 4, 1), (9, 3, 2)], ids=str)
def test_numbers_of_tokens_experts_and_choices(tokens: int, count: int, per_token: int, device: torch.device) -> None:
    check(dense, torch.float32, device, *choices(tokens, count, per_token), count=count)


@pytest.mark.parametrize("form", [dense, int8], ids=["dense", "int8"])
@pytest.mark.parametrize("size", [(33, 7), (70, 67)], ids=str)
def test_odd_widths(form: Forms, size: tuple[int, int], device: torch.device) -> None:
    """Also of rows of a matrix that do not begin at multiples of 16 bytes."""
    check(form, torch.float32, device, *choices(4, 3, 2), count=3, size=size, biases=True)


def test_the_activation_that_is_given(device: torch.device) -> None:
    form, (chosen, weights) = grouped(Codes.FP4, 32), choices(5, 4, 2)
    check(form, torch.bfloat16, device, chosen, weights, 4, (64, 32), True, activation=REFERENCE.clamped_swiglu)


@pytest.mark.parametrize(
    ("gate", "activation", "dtype"),
    [
        (FusedActivation.SILU, REFERENCE.silu_mul, torch.bfloat16),
        (FusedActivation.CLAMPED, REFERENCE.clamped_swiglu, torch.float32),
    ],
)
@pytest.mark.parametrize("form", [large, int8, grouped(Codes.FP4, 32)], ids=["dense", "int8", "fp4"])
def test_gates_within_the_first_product(
    gate: FusedActivation,
    activation: Callable[[Tensor], Tensor],
    dtype: torch.dtype,
    form: Forms,
    device: torch.device,
) -> None:
    """Of more than one tile."""
    chosen, weights = choices(5, 4, 2)
    check(form, dtype, device, chosen, weights, 4, (64, 70), True, [1], activation, gate)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_all_tokens_of_one_expert(dtype: torch.dtype, device: torch.device) -> None:
    """More rows than a block has; experts that nobody chose begin and end at either side of it."""
    check(dense, dtype, device, torch.full((75, 1), 2), torch.rand(75, 1), count=4, size=(24, 16))


@pytest.fixture
def filled_memory() -> Iterator[None]:
    """What is allocated holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("filled_memory")
def test_nothing_is_added_by_absent_experts(device: torch.device) -> None:
    chosen, weights = choices(4, 4, 2)
    chosen[1] = torch.tensor([1, 2])
    check(dense, torch.float32, device, chosen, weights, count=4, absent=[1, 2])


def test_no_tokens(device: torch.device) -> None:
    check(dense, torch.bfloat16, device, *choices(0, 4, 2), count=4)


def test_choices_are_sorted_by_expert_in_the_order_of_tokens(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experts, "_BLOCK", 16)
    chosen = torch.randint(0, 6, (25, 2), generator=torch.Generator().manual_seed(4)) // 2 * 2
    found = experts._routing(chosen.to(device), 7)
    assert found.order.tolist() == chosen.flatten().argsort(stable=True).tolist()
    counts = chosen.flatten().bincount(minlength=7)
    assert found.counts.tolist() == counts.tolist()
    assert found.starts.tolist() == (counts.cumsum(0) - counts).tolist()


@pytest.mark.parametrize("rows", [16, 64, 128])
def test_there_are_as_many_blocks_as_choices_could_come_to(rows: int) -> None:
    """Choices that take the most: all experts but one have a row more than whole blocks."""
    for choices_made in (1, 5, 8, 200, 1999):
        for count in (1, 8, 128):
            busy = min(count, choices_made)
            whole, rest = divmod(choices_made - busy, rows)
            counts = [1 + rows * whole, *[1] * (busy - 1)]
            counts[-1] += rest
            assert experts._blocks(choices_made, count, rows) == sum(-(-own // rows) for own in counts)


@pytest.mark.parametrize("rows", [1, 20, 40, 90])
@pytest.mark.parametrize("card", [A100, H100], ids=["A100", "H100"])
@pytest.mark.parametrize("form", [dense, int8, grouped(Codes.INT4, 32)], ids=["dense", "int8", "int4"])
def test_every_tile_of_the_table(
    form: Forms, rows: int, card: object, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    tile_of = experts._tile_of
    monkeypatch.setattr(experts, "_tile_of", lambda own, _, itemsize, __: tile_of(own, rows, itemsize, card))  # type: ignore[arg-type]
    check(form, torch.bfloat16, device, *choices(3, 2, 1), count=2, size=(80, 40))


def test_what_a_table_does_not_take(device: torch.device) -> None:
    def matrix(outputs: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(outputs, 8, dtype=dtype, device=device)

    one = plain_weight([Dense(matrix())], None)
    codes = grouped(Codes.INT4, 4)(4, 8, torch.float32, torch.Generator())
    assert isinstance(codes, Grouped)
    ordered = Grouped(Codes.INT4, codes.codes, codes.scales, None, 4, torch.arange(8))
    static = Int8(matrix(dtype=torch.int8), torch.ones(4), StaticRows(1.0, 0))
    others: list[Weight] = [
        plain_weight([Dense(matrix(5))], None),
        plain_weight([Dense(matrix(dtype=torch.bfloat16))], None),
        plain_weight([Dense(matrix(8).T)], None),
        plain_weight([Dense(matrix())], torch.zeros(4, dtype=torch.bfloat16)),
        plain_weight([codes], None),
        GroupedWeight(ordered, None),
        Int8Weight(static, None),
        SideBySide((one, one)),
    ]
    assert ExpertTable.of([one, None, one]) is not None
    assert [ExpertTable.of([one, other]) for other in others] == [None] * len(others)
    assert [ExpertTable.of([other]) for other in others[-3:]] == [None] * 3
    assert ExpertTable.of([None, None]) is None


def test_tables_are_built_once_and_again_where_a_weight_is_another(device: torch.device) -> None:
    def weight() -> Weight:
        return plain_weight([Dense(torch.zeros(4, 8, device=device))], None)

    tables, weights = ExpertTables(ExpertTable.of), [weight(), None]
    first = tables.of(weights)
    assert first is not None
    assert tables.of(weights) is first
    assert tables.of(list(weights)) is not first
    weights[1] = weight()
    second = tables.of(weights)
    assert second is not None
    assert second.pointers[0].tolist() == first.pointers[0].tolist()
    assert (second.pointers[:, 0] != 0).tolist() == [True, True]
    assert tables.of([None]) is None


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("size", [(3, 128, 8), (2, 32, 4), (5, 7, 3), (1, 5, 5), (2, 1, 1), (0, 8, 2)], ids=str)
def test_choices_and_their_weights(size: tuple[int, int, int], renormalise: bool, device: torch.device) -> None:
    tokens, count, taken = size
    logits = 3 * torch.randn(tokens, count, generator=torch.Generator().manual_seed(5)).to(device)
    weights, chosen = experts.choose_experts(logits, taken, renormalise)
    expected, right = REFERENCE.choose_experts(logits, taken, renormalise)
    assert torch.equal(chosen, right)
    torch.testing.assert_close(weights, expected)


def test_choices_of_logits_that_are_equal_or_no_numbers(device: torch.device) -> None:
    """Equal ones come in their order. One that is no number spoils the weights of its token, and no other."""
    logits = torch.tensor([[1.0, 2, 2, 1, 2], [0, float("nan"), 0, 3, 0], [float("-inf")] * 5], device=device)
    weights, chosen = experts.choose_experts(logits, 3, True)
    assert chosen[0].tolist() == [1, 2, 4]
    assert chosen[1, 0].item() == 1
    assert ((chosen >= 0) & (chosen < 5)).all()
    assert weights.isnan().all(1).tolist() == [False, True, True]


def test_codes_of_fp8_that_are_no_numbers_spoil_their_outputs_alone(device: torch.device) -> None:
    """One code of NaN in an expert's first matrix, in each sign; the inner number that it makes reaches all outputs."""
    generator, form = torch.Generator().manual_seed(4), grouped(Codes.FP8, 8)
    forms = form(16, 24, torch.float32, generator), form(24, 8, torch.float32, generator)
    gate_up: list[Weight | None] = []
    for code in (0x7F, 0xFF, 0x7E):
        codes = forms[0].tensors[0].clone()
        codes[3, 5] = code
        gate_up.append(plain_weight([replace(forms[0], codes=codes)], None))
    down: list[Weight | None] = [plain_weight([forms[1]], None)] * 3
    tables = ExpertTable.of(gate_up), ExpertTable.of(down)
    assert tables[0] is not None
    assert tables[1] is not None
    x, chosen = torch.randn(3, 24, generator=generator).to(device), torch.tensor([[0], [1], [2]], device=device)
    found = moe_experts(x, chosen, torch.ones(3, 1, device=device), tables[0], tables[1], REFERENCE.silu_mul, H100)
    right = REFERENCE.moe_experts(x, chosen, torch.ones(3, 1), gate_up, down, REFERENCE.silu_mul)
    assert right.isnan().all(1).tolist() == [True, True, False]
    torch.testing.assert_close(found, right, equal_nan=True)
