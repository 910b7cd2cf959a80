"""Every op of a device on random inputs, beside the reference on the CPU: what to run first on a card of a new kind.

Sizes are those of real models, made small: heads of 64 and 128 numbers, KV blocks of the platform's own size, sequences
that begin, go on and decode. A case yields what an op gives; the reference computes the same case in the same dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

from tilewise.platforms.base import Platform
from tilewise.platforms.draw import Draw, noise_key
from tilewise.platforms.forms import Codes, Dense, Form, Grouped, Int8, StaticRows
from tilewise.platforms.kv_cache import PagedLayout
from tilewise.platforms.ops import Ops
from tilewise.platforms.weights import Use, quantise_rows

_HIDDEN, _INNER = 256, 128
_TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Largest difference by dtype, as a share of the largest number of a result."""
_ROUNDED = 3e-2
"""Largest difference where rows are rounded to int8: a number may fall to the other side of a half."""
STEPS = {
    "prompts": ((130, 3), (130, 3)),
    "decode": ((1, 1, 1), (1, 129, 300)),
    "a chunk beside decode": ((40, 1), (200, 7)),
}
"""Steps of attention: tokens of each sequence, and its length after the step."""


@dataclass(frozen=True, slots=True)
class CaseContext:
    """The ops of a case, and the device, dtype and block size of its tensors."""

    ops: Ops
    device: torch.device
    dtype: torch.dtype
    block_size: int

    def noise(self, *shape: int, seed: int = 0, dtype: torch.dtype | None = None) -> Tensor:
        """Return the same normal numbers on every device."""
        made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
        return made.to(dtype or self.dtype).to(self.device)

    def layout(self, counts: Sequence[int], lengths: Sequence[int]) -> PagedLayout:
        """Lay sequences out in blocks of their own, behind block 0."""
        size = self.block_size
        needed = [-(-length // size) for length in lengths]
        table, first = torch.zeros(len(lengths), max(needed), dtype=torch.int64), 1
        slots = []
        for row, (count, length, blocks) in enumerate(zip(counts, lengths, needed, strict=True)):
            table[row, :blocks] = torch.arange(first, first + blocks)
            at = torch.arange(length - count, length)
            slots.append(table[row, at // size] * size + at % size)
            first += blocks
        return PagedLayout(
            query_starts=torch.tensor([0, *accumulate(counts)]).to(self.device),
            seq_lens=torch.tensor(lengths).to(self.device),
            block_table=table.to(self.device),
            kv_slots=torch.cat(slots).to(self.device),
            counts=list(counts),
            lengths=list(lengths),
            own_lengths=list(lengths),
        )


Case = Callable[[CaseContext], Iterator[Tensor]]


def _attention(step: str, width: int = 128, window: int | None = None, with_sinks: bool = False) -> Case:
    def case(context: CaseContext) -> Iterator[Tensor]:
        counts, lengths = STEPS[step]
        layout = context.layout(counts, lengths)
        blocks = 1 + sum(-(-length // context.block_size) for length in lengths)
        cache = context.noise(2, blocks, context.block_size, 2, width)
        rows = context.noise(sum(counts), 6 + 2 + 2, width, seed=1)
        query, key, value = rows.split((6, 2, 2), dim=1)
        angles = context.noise(sum(counts), width // 2, seed=2, dtype=torch.float32)
        turned = context.ops.rope_into_cache(query, key, value, angles.cos(), angles.sin(), cache, layout)
        yield turned
        yield cache
        sinks = context.noise(6, seed=3) if with_sinks else None
        yield context.ops.paged_attention(turned, cache, layout, width**-0.5, window, sinks)

    return case


def _tiles(context: CaseContext) -> Iterator[Tensor]:
    for width in (64, 128):
        query, key, value = context.noise(2, 65, 3, 3 * width).split(width, dim=-1)
        yield context.ops.dense_attention(query, key, value, width**-0.5)


def _rms_norm(context: CaseContext) -> Iterator[Tensor]:
    x, y, weight = context.noise(5, 3, _HIDDEN), context.noise(5, 3, _HIDDEN, seed=1), context.noise(_HIDDEN, seed=2)
    yield context.ops.rms_norm(x, weight, 1e-5)
    yield from context.ops.add_rms_norm(x, None, y, weight, 1e-5)
    yield from context.ops.add_rms_norm(x, weight, y, weight, 1e-5)


def _layer_norm(context: CaseContext) -> Iterator[Tensor]:
    x, y, weight = context.noise(5, 3, _HIDDEN), context.noise(5, 3, _HIDDEN, seed=1), context.noise(_HIDDEN, seed=2)
    yield context.ops.layer_norm(x, weight, weight, 1e-5)
    yield from context.ops.add_layer_norm(x, weight, y, weight, weight, 1e-5)


def _gates(context: CaseContext) -> Iterator[Tensor]:
    x = 3 * context.noise(5, 3, _HIDDEN)
    yield context.ops.gelu(x)
    yield context.ops.silu_mul(x)
    yield context.ops.clamped_swiglu(x[:, 1:])


def _product(*forms: Callable[[CaseContext], Form], with_bias: bool = True) -> Case:
    def case(context: CaseContext) -> Iterator[Tensor]:
        for form in forms:
            kept = form(context)
            bias = context.noise(kept.shape[0], seed=5) if with_bias else None
            weight = context.ops.store([kept], bias)
            x = context.noise(2, 7, kept.shape[1], seed=4)
            x[1, 3] = 0.0
            yield weight.apply(x, context.ops)
            yield weight.apply(x[:1, :1], context.ops)

    return case


def _floats(context: CaseContext) -> Form:
    return Dense(context.noise(_INNER, _HIDDEN, seed=1) / 8)


def _int8(context: CaseContext) -> Form:
    matrix, scales = quantise_rows(context.noise(_INNER, _HIDDEN, seed=1, dtype=torch.float32) / 8)
    return Int8(matrix, scales[:, 0])


def _calibrated(context: CaseContext) -> Form:
    dynamic = _int8(context)
    assert isinstance(dynamic, Int8)
    static, addend = StaticRows(0.0497, -3), torch.arange(_INNER, dtype=torch.int32, device=context.device)
    return Int8(dynamic.matrix, static.scale * dynamic.scales, static, addend)


def _codes(context: CaseContext) -> Form:
    codes = torch.arange(_INNER * _HIDDEN, device=context.device).remainder(251).to(torch.uint8)
    scales = context.noise(_INNER, _HIDDEN // 64, seed=1, dtype=torch.float32).abs() / 256
    return Grouped(Codes.INT8, codes.view(_INNER, _HIDDEN), scales, None, 64)


def _experts(int8: bool) -> Case:
    def case(context: CaseContext) -> Iterator[Tensor]:
        count = 6
        weights, chosen = context.ops.choose_experts(context.noise(9, count, seed=5, dtype=torch.float32), 2, True)

        def layer(outputs: int, inputs: int, seed: int) -> list[Any]:
            matrices = context.noise(count, outputs, inputs, seed=seed) / 8
            store = context.ops.store_int8 if int8 else context.ops.store
            return [store([Dense(matrix)], None, Use.EXPERT) for matrix in matrices]

        gate_up, down = layer(2 * _INNER, _HIDDEN, 1), layer(_HIDDEN, _INNER, 2)
        for rows in (9, 1):
            x = context.noise(rows, _HIDDEN)
            yield context.ops.moe_experts(x, chosen[:rows], weights[:rows], gate_up, down, context.ops.silu_mul)

    return case


def _patches(context: CaseContext) -> Iterator[Tensor]:
    pixels = torch.arange(2 * 28 * 28 * 3).remainder(256).to(torch.uint8).view(2, 28, 28, 3).to(context.device)
    mean, std = (torch.tensor(x).to(context.device) for x in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
    yield context.ops.patchify(pixels, 14, mean, std)
    target, source = context.noise(9, _HIDDEN), context.noise(4, _HIDDEN, seed=1)
    to, of = (torch.tensor(rows).to(context.device) for rows in ((7, 0, 3), (3, 1, 0)))
    context.ops.scatter_rows(target, to, source, of)
    yield target


def _drawing(context: CaseContext) -> Iterator[Tensor]:
    logits = 3 * context.noise(5, 1000, seed=3, dtype=torch.float32)
    wanted = [(1.0, 0, 1.0, 0.0), (0.7, 20, 1.0, 0.0), (1.3, 0, 0.9, 0.0), (0.9, 0, 1.0, 0.1), (1.0, 7, 0.8, 0.05)]
    yield context.ops.draw(logits, [Draw(row, *one, noise_key(row, 17)) for row, one in enumerate(wanted)]).float()


CASES: dict[str, tuple[Case, bool]] = {
    **{f"attention, {step}": (_attention(step), False) for step in STEPS},
    "attention, heads of 64": (_attention("decode", 64), False),
    "attention, a window": (_attention("a chunk beside decode", window=5), False),
    "attention, a window in decode": (_attention("decode", window=100), False),
    "attention, sinks": (_attention("a chunk beside decode", with_sinks=True), False),
    "attention of tiles": (_tiles, False),
    "RMS norm": (_rms_norm, False),
    "layer norm": (_layer_norm, False),
    "GELU, SwiGLU": (_gates, False),
    "product of floats": (_product(_floats), False),
    "product of int8, rows as they come": (_product(_int8), True),
    "product of int8, calibrated rows": (_product(_calibrated, with_bias=False), True),
    "product of codes in groups": (_product(_codes), False),
    "experts": (_experts(int8=False), False),
    "experts of int8": (_experts(int8=True), True),
    "patches, rows": (_patches, False),
    "drawing": (_drawing, False),
}
"""Cases by name, and whether rows are rounded to int8 in them."""


@dataclass(frozen=True)
class OpReport:
    """The outcome of a case on the device."""

    case: str
    dtype: str
    worst: float | None
    """Largest difference from the reference, as a share of the largest number; None = it failed."""
    allowed: float
    verdict: Literal["right", "off", "failed", "by torch"]
    why: str = ""


def dtypes_of(platform: Platform) -> tuple[torch.dtype, ...]:
    """Return the dtypes that a device computes models in: halves, and float32 where it is a processor."""
    return (torch.bfloat16, torch.float32) if platform.name == "cpu" else (torch.bfloat16, torch.float16)


def try_case(name: str, platform: Platform, ops: Ops, dtype: torch.dtype) -> OpReport:
    """Compute a case on a device and by the reference."""
    case, rounds = CASES[name]
    allowed = max(_TOLERANCE[dtype], _ROUNDED if rounds else 0.0)
    told = str(dtype).removeprefix("torch.")
    expected = list(case(CaseContext(Ops(), torch.device("cpu"), dtype, platform.block_size)))
    left_out: dict[str, str] = getattr(ops, "left_out", {})
    before = set(left_out)
    try:
        found = [x.cpu() for x in case(CaseContext(ops, platform.device, dtype, platform.block_size))]
    except Exception as error:  # whatever a driver raises
        why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        return OpReport(name, told, None, allowed, "failed", why)
    worst = max(_difference(one, other) for one, other in zip(found, expected, strict=True))
    if worst > allowed or worst != worst:
        return OpReport(name, told, worst, allowed, "off")
    if new := [op for op in left_out if op not in before]:
        return OpReport(name, told, worst, allowed, "by torch", "; ".join(f"{op}: {left_out[op]}" for op in new))
    return OpReport(name, told, worst, allowed, "right")


def _difference(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    largest = expected.double().abs().max().clamp(min=1e-6)
    return float((found.double() - expected.double()).abs().max() / largest)
