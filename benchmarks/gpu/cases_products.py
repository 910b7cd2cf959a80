"""Cases of products: matrices in every form, stored as the platform stores them, and experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from benchmarks.gpu.case import DTYPE, Call, Case, Noise
from torch import Tensor

from tilewise.plan.floors import StageWork
from tilewise.platforms.cuda import Card
from tilewise.platforms.forms import Codes, Dense, Form, Grouped, Int8, StaticRows
from tilewise.platforms.kv_cache import quantise
from tilewise.platforms.ops import Ops
from tilewise.platforms.weights import Use, Weight
from tilewise.twin.specs import TinySpec
from tilewise.weights.sources import drawn


@dataclass(frozen=True)
class Kept:
    """A form of a matrix."""

    name: str
    form: Callable[[int, int], Form]
    """Of shapes alone."""
    rounds: bool = False
    """Floats are rounded as they are stored (`store_int8`)."""
    fp8_rows: bool = False
    """Rows are rounded to FP8 as they come (TILEWISE_FP8_ROWS)."""

    def weight(self, ops: Ops, form: Form, bias: Tensor | None = None, use: Use = Use.ALONE) -> Weight:
        if self.fp8_rows:
            return _with_fp8_rows(ops, form, bias)
        return (ops.store_int8 if self.rounds else ops.store)([form], bias, use)


@dataclass(frozen=True)
class Fp8Rows:
    """A weight that multiplies rows rounded to FP8 where no kernel does, with a scale for each `group` of inputs."""

    weight: Weight
    group: int

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def apply(self, x: Tensor, ops: Ops) -> Tensor:
        groups = F.pad(x, (0, -x.shape[-1] % self.group)).unflatten(-1, (-1, self.group))
        levels, scales = quantise(groups, torch.float8_e4m3fn)
        rounded = (levels.float() * scales[..., None]).flatten(-2)[..., : x.shape[-1]]
        return self.weight.apply(rounded.to(x.dtype), ops)


def _with_fp8_rows(ops: Ops, form: Form, bias: Tensor | None) -> Weight:
    assert isinstance(form, Grouped)
    card = getattr(ops, "card", None)
    if isinstance(card, Card) and card.has_fp8:
        from tilewise.platforms.cuda.weights import cuda_store

        return cuda_store(card, fp8_rows=True)([form], bias)
    return Fp8Rows(ops.store([form], bias), form.group)


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def _dense(outputs: int, inputs: int) -> Form:
    return Dense(_meta(outputs, inputs))


def _static(outputs: int, inputs: int) -> Form:
    addend = _meta(outputs, dtype=torch.int32)
    return Int8(_meta(outputs, inputs, dtype=torch.int8), _meta(outputs), StaticRows(0.03, 3), addend)


def _grouped(kind: Codes, group: int | None, shifts: bool, outputs: int, inputs: int) -> Form:
    """`group` None = all inputs. Of a narrow matrix, the group has all inputs as well."""
    length = inputs if group is None or group > inputs else group
    groups = -(-inputs // length)
    codes = _meta(outputs, inputs * kind.bits // 8, dtype=torch.uint8)
    return Grouped(kind, codes, _meta(outputs, groups), _meta(outputs, groups) if shifts else None, length)


KEPT = (
    Kept("floats", _dense),
    Kept("W8A8", _dense, rounds=True),
    Kept("W8A8 static", _static),
    Kept("UINT4 of 128", partial(_grouped, Codes.UINT4, 128, True)),
    Kept("INT4 of 128", partial(_grouped, Codes.INT4, 128, False)),
    Kept("FP8", partial(_grouped, Codes.FP8, None, False)),
    Kept("FP4 of 32", partial(_grouped, Codes.FP4, 32, False)),
    Kept("FP8 with rows of FP8", partial(_grouped, Codes.FP8, None, False), fp8_rows=True),
    Kept("FP8 of 128 with rows of FP8", partial(_grouped, Codes.FP8, 128, False), fp8_rows=True),
    Kept("INT8 rows of floats", partial(_grouped, Codes.INT8, None, False)),
)
_OF_EXPERTS = ("floats", "W8A8", "INT4 of 128", "FP8", "FP4 of 32")


def cases(model: str, spec: TinySpec, tiny: bool) -> Iterator[Case]:
    counts = (1, 5, 17) if tiny else (1, 64, 4096)
    for kept in KEPT:
        for rows in counts:
            shape = (2 * spec.intermediate, spec.hidden)
            yield _product(f"product {kept.name} {model} gate_up, {rows} rows", kept, *shape, rows, bias=False)
    for kept in KEPT[:2]:
        for rows in counts:
            shape = (spec.hidden, spec.intermediate)
            yield _product(f"product {kept.name} {model} down, {rows} rows", kept, *shape, rows, bias=True)
    for rows in counts[:2]:
        yield _product(f"product floats {model} head, {rows} rows", KEPT[0], spec.vocab_size, spec.hidden, rows, False)
    yield _linear_gelu(f"linear_gelu {model}", spec, 2 if tiny else 13)


def expert_cases(model: str, spec: TinySpec, tiny: bool) -> Iterator[Case]:
    for rows in (1, 5) if tiny else (1, 64):
        yield _choice(f"choose_experts {model}, {rows} rows", spec, rows)
    for kept in KEPT:
        if kept.name in _OF_EXPERTS:
            for rows in (1, 5, 17) if tiny else (1, 64, 2048):
                yield _experts(f"moe_experts {kept.name} {model}, {rows} rows", kept, spec, rows)


def _work(kept: Kept, weight_bytes: float, rows: float, numbers: float, moved: float) -> StageWork:
    operations = 2.0 * rows * numbers
    bytes_alone = kept.name.startswith("W8A8") or kept.fp8_rows  # tensor cores multiply int8 and FP8 at one rate
    return StageWork(weight_bytes + moved, 0.0 if bytes_alone else operations, operations if bytes_alone else 0.0)


def _nbytes(kept: Kept, form: Form) -> int:
    """As it is stored."""
    if kept.rounds:
        return form.shape[0] * (form.shape[1] + torch.float32.itemsize)
    return sum(tensor.nbytes for tensor in form.tensors)


def _product(name: str, kept: Kept, outputs: int, inputs: int, rows: int, bias: bool) -> Case:
    def made(noise: Noise) -> SimpleNamespace:
        form = drawn(kept.form(outputs, inputs), noise.generator, DTYPE)
        return SimpleNamespace(x=noise(rows, inputs), form=form, bias=noise(outputs) if bias else None)

    def prepare(ops: Ops, a: SimpleNamespace) -> Call:
        weight = kept.weight(ops, a.form, a.bias)
        return lambda: weight.apply(a.x, ops)

    def plain(a: SimpleNamespace) -> Call:
        """Without quantisation."""
        matrix = a.form.dequantised().to(DTYPE)
        return lambda: F.linear(a.x, matrix, a.bias)

    def work(a: SimpleNamespace) -> StageWork:
        moved = a.x.itemsize * rows * (inputs + outputs)
        return _work(kept, _nbytes(kept, a.form), rows, outputs * inputs, moved)

    return Case(name, made, prepare, work, plain)


def _linear_gelu(name: str, spec: TinySpec, tiles: int) -> Case:
    """The first product of the tower's MLP."""
    rows, outputs, inputs = (
        tiles * ((spec.tile_size // spec.patch) ** 2 + 1),
        spec.vision_intermediate,
        spec.vision_hidden,
    )

    def made(noise: Noise) -> SimpleNamespace:
        form = drawn(_dense(outputs, inputs), noise.generator, DTYPE)
        return SimpleNamespace(x=noise(rows, inputs), form=form, bias=noise(outputs))

    def prepare(ops: Ops, a: SimpleNamespace) -> Call:
        weight = ops.store([a.form], a.bias)
        return lambda: ops.linear_gelu(a.x, weight)

    def work(a: SimpleNamespace) -> StageWork:
        return _work(
            KEPT[0], _nbytes(KEPT[0], a.form), rows, outputs * inputs, a.x.itemsize * rows * (inputs + outputs)
        )

    return Case(name, made, prepare, work)


def _choice(name: str, spec: TinySpec, rows: int) -> Case:
    def prepare(ops: Ops, a: SimpleNamespace) -> Call:
        def call() -> tuple[Tensor, Tensor]:
            weights, chosen = ops.choose_experts(a.logits, spec.experts_per_token, True)
            return weights, chosen.float()

        return call

    return Case(
        name,
        lambda noise: SimpleNamespace(logits=noise(rows, spec.experts, dtype=torch.float32)),
        prepare,
        lambda a: StageWork(a.logits.nbytes),
    )


def _experts(name: str, kept: Kept, spec: TinySpec, rows: int) -> Case:
    count, taken, hidden, inner = spec.experts, spec.experts_per_token, spec.hidden, spec.expert_intermediate

    def made(noise: Noise) -> SimpleNamespace:
        def forms(outputs: int, inputs: int) -> list[Form]:
            return [drawn(kept.form(outputs, inputs), noise.generator, DTYPE, scale=0.1) for _ in range(count)]

        weights, chosen = noise(rows, count, dtype=torch.float32).softmax(-1).topk(taken, dim=-1)
        return SimpleNamespace(
            x=noise(rows, hidden), chosen=chosen, weights=weights,
            gate_up=forms(2 * inner, hidden), down=forms(hidden, inner),
        )  # fmt: skip

    def prepare(ops: Ops, a: SimpleNamespace) -> Call:
        gate_up, down = ([kept.weight(ops, form, use=Use.EXPERT) for form in forms] for forms in (a.gate_up, a.down))
        return lambda: ops.moe_experts(a.x, a.chosen, a.weights, gate_up, down, ops.silu_mul)

    def work(a: SimpleNamespace) -> StageWork:
        touched = len(a.chosen.unique())
        expert = _nbytes(kept, a.gate_up[0]) + _nbytes(kept, a.down[0])
        moved = 2.0 * a.x.nbytes
        return _work(kept, touched * expert, rows * taken, 3 * inner * hidden, moved)

    return Case(name, made, prepare, work)
