"""`Ops.moe_experts` without a wait for the device: routing, two grouped products, and the sum over a token's choices.

A choice is one of the N * k pairs of a token and an expert, numbered token by token. `_route` sorts them by expert; the
first product gathers rows of x in that order, the second scatters its own back to the order of choices, and
`_sum_choices` adds each token's in one order. Nothing is added by atomics, and the host knows nothing but N, k and E.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from math import gcd
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tilewise.platforms.cuda import Card
from tilewise.platforms.cuda.kernels import expert_products as products
from tilewise.platforms.cuda.kernels.grouped_product import NUMBER
from tilewise.platforms.cuda.kernels.rounding import int8_rows
from tilewise.platforms.forms import Dense, Form, Grouped, Int8
from tilewise.platforms.weights import DenseWeight, GroupedWeight, Int8Weight, Weight

_BLOCK = 1024


class FusedActivation(Enum):
    """The activations that the first product applies itself: that spares a launch, and memory for twice the numbers."""

    SILU = products.SILU
    """`Ops.silu_mul`."""
    CLAMPED = products.CLAMPED
    """`Ops.clamped_swiglu`, rounded once."""


@dataclass(frozen=True, slots=True)
class ExpertTable:
    """The addresses of the matrices of a layer's experts, for kernels to read, and the weights that keep them there."""

    weights: tuple[Weight | None, ...]
    pointers: Tensor
    """int64 [E, 4] on the device: matrix or codes, scales, shifts, bias; 0 = there is none."""
    form: Form
    """Form of one expert, for what all have in common."""
    aligned: bool
    """True if every tensor begins at a multiple of 16 bytes."""

    @classmethod
    def of(cls, weights: Sequence[Weight | None]) -> ExpertTable | None:
        """Return the table of experts that are kept alike; None where the grouped product cannot take them.

        It takes contiguous `DenseWeight`, `Int8Weight` whose rows are rounded as they come (not `static`), and
        `GroupedWeight` of any codes without an order of inputs, all of one shape, dtype, kind and group, on one device.
        Biases are optional, expert by expert. Experts that are None are another rank's; one at least is here.
        """
        parts = [None if weight is None else _parts(weight) for weight in weights]
        present = [(weight, own) for weight, own in zip(weights, parts, strict=True) if weight is not None]
        first = present[0][1] if present else None
        if first is None or any(own is None or not _alike(first, own) for _, own in present):
            return None
        device = first[0].tensors[0].device
        rows = [[0] * 4 if own is None else [0 if x is None else x.data_ptr() for x in _columns(*own)] for own in parts]
        if device.type == "meta":
            pointers = torch.empty(len(rows), 4, dtype=torch.int64, device=device)
        else:
            pointers = torch.tensor(rows, dtype=torch.int64).to(device)
        aligned = all(pointer % 16 == 0 for row in rows for pointer in row)
        return cls(tuple(weights), pointers, first[0], aligned)


def _parts(weight: Weight) -> tuple[Form, Tensor | None] | None:
    match weight:
        case DenseWeight(matrix, bias):
            form: Form = Dense(matrix)
        case Int8Weight(form, bias) if form.static is None:
            pass
        case GroupedWeight(form, bias) if form.order is None:
            pass
        case _:
            return None
    tensors = [*form.tensors, *([] if bias is None else [bias])]
    return (form, bias) if all(tensor.is_contiguous() for tensor in tensors) else None


def _alike(first: tuple[Form, Tensor | None], other: tuple[Form, Tensor | None]) -> bool:
    (form, _), (own, bias) = first, other
    return (
        own.shape == form.shape
        and form.joins(own)
        and own.tensors[0].device == form.tensors[0].device
        and (bias is None or not isinstance(form, Dense) or bias.dtype == form.matrix.dtype)
    )


def _columns(form: Form, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    match form:
        case Dense(matrix):
            return matrix, None, None, bias
        case Int8():
            return form.matrix, form.scales, None, bias
        case Grouped():
            return form.codes, form.scales, form.shifts, bias


@dataclass(frozen=True, slots=True)
class _Tile:
    rows: int
    outputs: int
    inputs: int
    warps: int
    stages: int


def _tile_of(form: Form, rows: float, itemsize: int, card: Card) -> _Tile:
    """Choose a tile for `rows` rows an expert on average; `itemsize` is bytes of a number of x.

    With few, the product reads each matrix once and waits for memory: narrow tiles make for enough programs (8 experts
    of 1536 outputs are 192), deep ones for long reads. A block has twice the rows of the average, since experts that
    are chosen more often than others would read their matrices again. With many rows, wide tiles read both sides less
    often; Hopper and later hold the sums of 256 outputs. Codes are dequantised in registers, beside the sums, so their
    tiles are smaller; sums of int8 are held twice at the end, as whole numbers and as floats. Of codes, 32 outputs are
    too few for `wgmma`, whose layout of a left side in registers would have Triton copy codes 4 bytes at a time.
    """
    if itemsize == 4:  # not what GPUs are for: no tensor cores
        return _Tile(16 if rows <= 16 else 32, 64, 32, 4, 2)
    grouped, deep = isinstance(form, Grouped), 2 if itemsize == 1 else 1
    if rows <= 24:
        few = 16 if rows <= 8 else 32
        return _Tile(few, 32 if grouped else 64, 128 * deep, 4, 4)
    if rows <= 48:
        return _Tile(64, 128, 64 * deep, 4, 4)
    if grouped and not card.has_wide_tiles:
        return _Tile(64, 128, 64, 8, 3)
    if isinstance(form, Dense) and card.has_wide_tiles:
        return _Tile(128, 256, 64, 8, 3)
    return _Tile(128, 128, 64 * deep, 8, 3)


@triton.jit
def _choose_experts(
    logits, weights, chosen, experts, COUNT: tl.constexpr, SLOTS: tl.constexpr, BLOCK: tl.constexpr,
    RENORMALISE: tl.constexpr,
):  # fmt: skip
    """Choose experts for one token, the largest logit first, and of equal ones the first."""
    token = tl.program_id(0).to(tl.int64)
    place, slot = tl.arange(0, BLOCK), tl.arange(0, SLOTS)
    numbers = tl.load(logits + token * experts + place, mask=place < experts, other=float("-inf"))
    numbers = tl.where(numbers == numbers, numbers, float("inf"))  # what is no number comes first, and gives no weights
    left = numbers
    scores, numbered = tl.full((SLOTS,), float("-inf"), tl.float32), tl.zeros((SLOTS,), tl.int32)
    for number in tl.static_range(COUNT):
        largest = tl.max(left, axis=0)
        first = tl.min(tl.where(left == largest, place, BLOCK), axis=0)
        scores = tl.where(slot == number, largest, scores)
        numbered = tl.where(slot == number, first, numbered)
        left = tl.where(place == first, float("-inf"), left)
    largest = tl.max(scores, axis=0)
    powers = tl.exp(scores - largest)
    total = tl.sum(powers if RENORMALISE else tl.exp(numbers - largest), axis=0)
    tl.store(weights + token * COUNT + slot, tl.div_rn(powers, total), mask=slot < COUNT)
    tl.store(chosen + token * COUNT + slot, numbered.to(tl.int64), mask=slot < COUNT)


def choose_experts(logits: Tensor, count: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """Compute `Ops.choose_experts` in one launch, where torch has a softmax, two for the largest, and a sum."""
    tokens, experts = logits.shape
    weights = logits.new_empty(tokens, count)
    chosen = torch.empty(tokens, count, dtype=torch.int64, device=logits.device)
    if tokens:
        slots, block = triton.next_power_of_2(count), triton.next_power_of_2(experts)
        _choose_experts[tokens,](
            logits.contiguous(), weights, chosen, experts,
            COUNT=count, SLOTS=slots, BLOCK=block, RENORMALISE=renormalise, num_warps=1,
        )  # fmt: skip
    return weights, chosen


@triton.jit(do_not_specialize=["choices"])
def _route(chosen, order, starts, counts, choices, BLOCK: tl.constexpr):
    """Sort choices by expert, a program for each expert: where its choices begin, how many it has, and which.

    Each program reads all choices: a few hundred in a decode step, in prefill some ten thousand that stay in the cache.
    """
    expert = tl.program_id(0)
    before = tl.zeros((), tl.int32)
    count = tl.zeros((), tl.int32)
    for start in range(0, choices, BLOCK):
        place = start + tl.arange(0, BLOCK)
        other = tl.load(chosen + place, mask=place < choices, other=0x7FFFFFFF)
        before += tl.sum((other < expert).to(tl.int32))
        count += tl.sum((other == expert).to(tl.int32))
    tl.store(starts + expert, before)
    tl.store(counts + expert, count)
    for start in range(0, choices, BLOCK):
        place = start + tl.arange(0, BLOCK)
        own = (tl.load(chosen + place, mask=place < choices, other=0x7FFFFFFF) == expert).to(tl.int32)
        tl.store(order + before + tl.cumsum(own, 0) - 1, place, mask=own != 0)
        before += tl.sum(own)


@triton.jit
def _sum_choices(outer, chosen, table, out, width, per_token, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """Add up the rows of a token's choices. Rows of absent experts were never written, and are not read."""
    token = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for number in range(per_token):
        choice = token * per_token + number
        present = tl.load(table + tl.load(chosen + choice) * COLUMNS) != 0
        total += tl.load(outer + choice * width + place, mask=(place < width) & present, other=0.0).to(tl.float32)
    tl.store(out + token * width + place, total.to(out.dtype.element_ty), mask=place < width)


@dataclass(frozen=True, slots=True)
class _Routing:
    order: Tensor
    """int32 [choices], choices sorted by expert, those of one expert in the order of tokens."""
    starts: Tensor
    """int32 [E], the place in `order` at which each expert's choices begin."""
    counts: Tensor
    """int32 [E], the number of each expert's choices."""


def _routing(chosen: Tensor, experts: int) -> _Routing:
    order = torch.empty(chosen.numel(), dtype=torch.int32, device=chosen.device)
    starts, counts = torch.empty(2, experts, dtype=torch.int32, device=chosen.device)
    _route[experts,](chosen, order, starts, counts, chosen.numel(), BLOCK=_BLOCK)
    return _Routing(order, starts, counts)


def _blocks(choices: int, experts: int, rows: int) -> int:
    """Return the most blocks that so many choices can make: every expert has one choice too many for its last block."""
    busy = min(experts, choices)
    return (choices - busy) // rows + busy


def _constants(form: Form) -> dict[str, Any]:
    """Return the constants of a form that a product is compiled for."""
    match form:
        case Dense():
            return {"FORM": products.FLOATS, "KIND": 0, "BITS": 8, "SHIFTED": False}
        case Int8():
            return {"FORM": products.INTEGERS, "KIND": 0, "BITS": 8, "SHIFTED": False}
        case Grouped():
            how = {"KIND": NUMBER[form.kind], "BITS": form.kind.bits, "SHIFTED": form.shifts is not None}
            return {"FORM": products.CODES, **how}


def _product(
    x: Tensor,
    weights: Tensor,
    routing: _Routing,
    table: ExpertTable,
    card: Card,
    first: bool,
    gate: FusedActivation | None,
) -> Tensor:
    """Launch `expert_product`: x [N, in] or [choices, in] -> [choices, out], or half of out, in x's dtype."""
    form, (outputs, width) = table.form, table.form.shape
    choices, experts = weights.numel(), len(table.pointers)
    out = x.new_empty(choices, outputs if gate is None else outputs // 2)
    assert not isinstance(form, Dense) or form.matrix.dtype == x.dtype
    x, scales = int8_rows(x) if isinstance(form, Int8) else (x, x)
    tile = _tile_of(form, choices / min(experts, choices), x.element_size(), card)
    group, per_byte = (form.group, 8 // form.kind.bits) if isinstance(form, Grouped) else (width, 1)
    blocks = _blocks(choices, experts, tile.rows), triton.cdiv(outputs, tile.outputs)
    products.expert_product[blocks](
        x, x.stride(0), scales, routing.order, routing.starts, routing.counts, table.pointers, weights, out,
        experts, outputs, width, width // per_byte, group, weights.shape[1],
        EXPERTS=triton.next_power_of_2(experts), ALIGNED=table.aligned, FIRST=first, RUN=gcd(group, tile.inputs),
        GATE=products.PLAIN if gate is None else gate.value, **_constants(form),
        BLOCK_M=tile.rows, BLOCK_N=tile.outputs, BLOCK_K=tile.inputs,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out


def moe_experts(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    gate_up: ExpertTable,
    down: ExpertTable,
    activation: Callable[[Tensor], Tensor] | FusedActivation,
    card: Card,
) -> Tensor:
    """Compute `Ops.moe_experts` of x [N, H], chosen int64 [N, k] and weights [N, k], by experts in tables; N may be 0.

    It rounds once where the reference rounds thrice: an expert's result is multiplied by its weight, in float32, before
    it becomes a number of x's dtype, and a token's are added in float32. An activation that is called also sees rows of
    absent experts, which hold whatever was there. Which tiles multiply depends on N * k, and so do the last bits of a
    row.
    """
    tokens, per_token = chosen.shape
    width = down.form.shape[0]
    out = x.new_empty(tokens, width)
    if not chosen.numel():
        return out.zero_()
    chosen, weights = chosen.contiguous(), weights.contiguous()
    routing = _routing(chosen, len(gate_up.pointers))
    if isinstance(activation, FusedActivation):
        inner = _product(x, weights, routing, gate_up, card, True, activation)
    else:
        inner = activation(_product(x, weights, routing, gate_up, card, True, None))
    outer = _product(inner, weights, routing, down, card, False, None)
    _sum_choices[tokens, triton.cdiv(width, _BLOCK)](
        outer, chosen, down.pointers, out, width, per_token, COLUMNS=4, BLOCK=_BLOCK
    )
    return out
