"""What is compiled ahead of time: each kernel as the family's models would launch it, by the name of the case.

Cases of one kernel stand in the function that has its name; tensors have the shapes of a model of the family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from tilewise.platforms.cuda import A100, B200, H100, RTX3090, RTX4090, RTX5090, Card
from tilewise.platforms.cuda.kernels import (
    cache,
    experts,
    grouped_product,
    products,
    rounding,
    rows,
    sampling,
)
from tilewise.platforms.cuda.kernels.attention import dense_attention
from tilewise.platforms.cuda.kernels.paged_attention import paged_attention
from tilewise.platforms.cuda.kernels.products import Epilogue
from tilewise.platforms.forms import Codes, Dense, Form, Grouped, StaticRows
from tilewise.platforms.kv_cache import PagedLayout, empty_cache
from tilewise.platforms.ops import HeadNorms
from tilewise.platforms.weights import plain_weight, rounded_to_int8

CARDS = {"sm_80": A100, "sm_86": RTX3090, "sm_89": RTX4090, "sm_90": H100, "sm_100": B200, "sm_120": RTX5090}
SHARED = {"sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99}
"""KiB of shared memory that a block of threads may have, by card (CUDA C++ Programming Guide, technical specifications
per compute capability).
"""

HALF = torch.float16

MMA = dict.fromkeys(CARDS, "mma")
"""Tensor cores by the instructions that all cards have: for tiles of fewer than 64 rows."""
NEWEST = MMA | {"sm_90": "wgmma", "sm_100": "tcgen05"}
"""Tensor cores by the instructions of each generation."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a compiled kernel has to keep to."""

    tensor_cores: Mapping[str, str] = field(default_factory=dict)
    """By card, the family (`ahead.TENSOR_CORES`) whose instructions it uses at least; none where it has no entry."""
    spilled: int = 0
    """Bytes of a thread that go to local memory at most."""


CLAIMS: dict[str, Claim] = {
    "expert_product": Claim(MMA),
    "expert_product experts dense prefill": Claim(NEWEST),
    "expert_product experts int4 prefill": Claim(NEWEST),
    "expert_product experts int4 prefill 30B-A3B sm_120": Claim(NEWEST, spilled=8),
    "expert_product experts fp8 prefill": Claim(NEWEST),
    "expert_product experts fp4 prefill": Claim(NEWEST),
    "expert_product experts int8 prefill": Claim(NEWEST | {"sm_100": "mma"}),  # tcgen05 has no int8 in Triton 3.6
    "_attend attention": Claim(NEWEST),
    "_attend attention decode": Claim(MMA),
    "_attend attention prefill 1B sm_100": Claim(NEWEST, spilled=16),
    "_attend attention mixed": Claim(),  # two ways in one launch, of which each has its own family
    "_attend attention mixed 20B oss sm_100": Claim(spilled=8),
    "_attend_tile attention": Claim(NEWEST),
    "_attend_tile attention tiles 6B sm_120": Claim(NEWEST, spilled=32),
    "_byte_product int8_product": Claim(NEWEST | {"sm_100": "mma"}),  # Triton has no tcgen05 of int8
    "_byte_product fp8_product": Claim(NEWEST),
    "_grouped_product grouped_product few": Claim(MMA),
    "_grouped_product grouped_product few INT4 32 8B 1 sm_90": Claim(MMA, spilled=8),
    "_grouped_product grouped_product many": Claim(NEWEST),
}
"""By the first words of kernel, case and card, as in "_attention", "_attention decode 8B" and "_attention decode 8B
sm_80"; the longest that fits counts. Kernels without an entry claim no tensor cores, and spill nothing."""


def claim_of(kernel: str, case: str) -> Claim:
    words = [kernel, *case.split()]
    found = (CLAIMS.get(" ".join(words[:length])) for length in range(len(words), 0, -1))
    return next((claim for claim in found if claim), Claim())


def shape(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(sizes, dtype=dtype, device="meta")


def row_kernels(card: Card) -> Iterator[tuple[str, Callable[[], object]]]:
    for name, width in (("1B", 896), ("8B", 3584), ("78B", 8192)):
        x, weight, y = shape(64, width), shape(width), shape(64, width)
        yield f"add_rms_norm {name}", partial(rows.add_rms_norm, x, None, y, weight, 1e-6)
    x, weight, y = shape(64, 3584), shape(3584), shape(64, 3584)
    yield "rms_norm 8B", lambda: rows.rms_norm(x, weight, 1e-6)
    qkv = shape(64, (32 + 2 * 4) * 128)
    yield "rms_norm 30B-A3B heads", lambda: rows.rms_norm(qkv[:, :4096].unflatten(-1, (32, 128)), shape(128), 1e-6)
    for name, width in (("300M", 1024), ("6B", 3200)):
        tiles, vector = shape(13, 1025, width), shape(width)
        yield f"add_layer_norm {name}", partial(rows.add_layer_norm, tiles, vector, tiles, vector, vector, 1e-6)
    yield "add_scaled 6B", lambda: rows.add_scaled(tiles, vector, tiles)
    yield "add_scaled 8B", lambda: rows.add_scaled(x, None, y)
    yield "gelu 300M", lambda: rows.gelu(shape(13, 1025, 4096))
    yield "silu_mul 8B", lambda: rows.silu_mul(shape(64, 2 * 18944))
    chosen = shape(256, dtype=torch.int64)
    yield "scatter_rows 8B", lambda: rows.scatter_rows(x, chosen, shape(4096, 3584), chosen)
    pixels, mean = shape(13, 448, 448, 3, dtype=torch.uint8), shape(3, dtype=torch.float32)
    yield "patchify", lambda: rows.patchify(pixels, 14, mean, mean, torch.bfloat16)


def byte_products(card: Card) -> Iterator[tuple[str, Callable[[], object]]]:
    """Gate and up projections of an 8B (4096 inputs, 2 x 12288 outputs), its output projection, and the tower's."""
    for rows_, outputs in ((1, 4096), (3400, 24576)):
        scales = Epilogue(shape(rows_, dtype=torch.float32), shape(outputs, dtype=torch.float32))
        x, matrix = shape(rows_, 4096, dtype=torch.int8), shape(outputs, 4096, dtype=torch.int8)
        yield f"int8_product 8B {rows_}", partial(products.int8_product, x, matrix, torch.bfloat16, scales, card)
        if card.has_fp8:
            fp8 = x.to(torch.float8_e4m3fn), matrix.to(torch.float8_e4m3fn), torch.bfloat16
            blocks = shape(32, outputs, dtype=torch.float32), shape(rows_, 32, dtype=torch.float32)
            yield f"fp8_product 8B {rows_}", partial(products.fp8_product, *fp8, scales, card)
            yield f"fp8_product blocks 8B {rows_}", partial(products.fp8_product, *fp8, Epilogue(), card, *blocks)
    x, matrix = shape(13 * 1025, 1024, dtype=torch.int8), shape(4096, 1024, dtype=torch.int8)
    static = Epilogue(None, shape(4096, dtype=torch.float32), shape(4096, dtype=torch.int32), shape(4096), gelu=True)
    yield "int8_product 300M gelu", lambda: products.int8_product(x, matrix, torch.bfloat16, static, card)


def grouped_products(card: Card) -> Iterator[tuple[str, Callable[[], object]]]:
    """Gate and up projections of an 8B, in groups as AWQ, GPTQ, MXFP4 and FP8 have them."""
    kinds = ((Codes.UINT4, 128, (1, 3400)), (Codes.INT4, 32, (1, 64)), (Codes.FP4, 32, (1,)))
    for kind, group, counts in (*kinds, (Codes.FP8, 4096, (1,)), (Codes.FP8, 128, (3400,))):
        codes = shape(24576, 4096 * kind.bits // 32, dtype=torch.int32)
        scales = shape(4096 // group, 24576, dtype=torch.float16)
        for rows_ in counts:
            own = (kind, codes, scales, scales if kind is Codes.UINT4 else None, group, None, False, card)
            found = partial(grouped_product.grouped_product, shape(rows_, 4096), *own)
            few = "few" if rows_ <= 32 else "many"
            yield f"grouped_product {few} {kind.name} {group} 8B {rows_}", found
    own = (Codes.INT4, shape(4096, 448, dtype=torch.int32), shape(28, 4096), None, 128, None, False, card)
    yield "grouped_product few 1B float16", lambda: grouped_product.grouped_product(shape(1, 3584, dtype=HALF), *own)


def rope_kernels(card: Card) -> Iterator[tuple[str, Callable[[], object]]]:
    floats, e4m3 = torch.bfloat16, torch.float8_e4m3fn
    eight = (28, 4, 128)
    models = {
        "1B": (14, 2, 64, floats),
        "8B": (*eight, floats),
        "8B int8": (*eight, torch.int8),
        "8B fp8": (*eight, e4m3),
    }
    for name, (heads, kv_heads, width, kept) in models.items():
        query, key, value = shape(64, heads + 2 * kv_heads, width).split((heads, kv_heads, kv_heads), dim=1)
        angles, slots = shape(64, width // 2, dtype=torch.float32), shape(64, dtype=torch.int64)
        arguments = (query, key, value, angles, angles)
        kept_cache = empty_cache((2, 100, 16, kv_heads, width), kept, torch.device("meta"))
        layout = PagedLayout(slots, slots, slots, slots)
        yield f"rope {name}", partial(cache.rope_into_cache, *arguments, kept_cache, layout)
        norms = HeadNorms(shape(width), shape(width), 1e-6)
        yield f"rope {name} normed", partial(cache.rope_into_cache, *arguments, kept_cache, layout, norms)


def rounding_kernels(card: Card) -> Iterator[tuple[str, Callable[[], object]]]:
    for name, width in (("8B", 3584), ("8B down", 18944)):
        x = shape(64, width)
        yield f"int8_rows {name}", partial(rounding.int8_rows, x)
        yield f"fp8_rows {name}", partial(rounding.fp8_rows, x)
    yield "fp8_groups 8B", lambda: rounding.fp8_groups(shape(64, 3584))
    yield "int8_rows_static 8B", lambda: rounding.int8_rows_static(shape(64, 3584), StaticRows(0.02, -3))


def sampling_kernels(card: Card) -> Iterator[tuple[str, Callable[[], object]]]:
    for count in (1, 64):
        settings = [shape(count, dtype=kind) for kind in (torch.float32, torch.int32, torch.float32, torch.float32)]
        logits, keys = shape(count, 151674, dtype=torch.float32), shape(count, 2, dtype=torch.int32)
        yield f"draw_rows {count}", partial(sampling.draw_rows, logits, None, *settings, keys)


def expert_table(form: Form, count: int, bias: Tensor | None = None) -> experts.ExpertTable:
    table = experts.ExpertTable.of([plain_weight([form], bias)] * count)
    assert table is not None
    return table


def expert_kernels(card: Card) -> Iterator[tuple[str, Callable[[], object]]]:
    def dense(outputs: int, inputs: int) -> Form:
        return Dense(shape(outputs, inputs))

    def int4(outputs: int, inputs: int) -> Form:
        scales = shape(outputs, inputs // 128, dtype=torch.float32)
        return Grouped(Codes.INT4, shape(outputs, inputs // 2, dtype=torch.uint8), scales, None, 128)

    def fp8(outputs: int, inputs: int) -> Form:
        scales = shape(outputs, inputs // 128, dtype=torch.float32)
        return Grouped(Codes.FP8, shape(outputs, inputs, dtype=torch.uint8), scales, None, 128)

    def fp4(outputs: int, inputs: int) -> Form:
        scales = shape(outputs, inputs // 32, dtype=torch.float32)
        return Grouped(Codes.FP4, shape(outputs, inputs // 2, dtype=torch.uint8), scales, None, 32)

    def launch(
        table: Callable[[int, int], Form],
        size: tuple[int, int, int, int],
        tokens: int,
        biases: bool,
        gate: experts.FusedActivation | None = experts.FusedActivation.SILU,
    ) -> object:
        count, hidden, inner, per_token = size
        gate_up = expert_table(table(2 * inner, hidden), count, shape(2 * inner) if biases else None)
        down = expert_table(table(hidden, inner), count, shape(hidden) if biases else None)
        chosen, weights = shape(tokens, per_token, dtype=torch.int64), shape(tokens, per_token, dtype=torch.float32)
        x = shape(tokens, hidden)
        return experts.moe_experts(x, chosen, weights, gate_up, down, gate or rows.silu_mul, card)

    a3b, gpt_oss = (128, 2048, 768, 8), (32, 2880, 2880, 4)
    for name, (count, *_, taken), renormalise in (("30B-A3B", a3b, True), ("gpt-oss-20b", gpt_oss, False)):
        logits = shape(64, count, dtype=torch.float32)
        yield f"choice {name}", partial(experts.choose_experts, logits, taken, renormalise)
    yield "experts dense 256 30B-A3B", partial(launch, dense, a3b, 256, False)
    yield "experts dense prefill apart 30B-A3B", partial(launch, dense, a3b, 4096, False, None)
    for what, tokens in (("decode", 1), ("prefill", 4096)):
        yield f"experts dense {what} 30B-A3B", partial(launch, dense, a3b, tokens, False)
        yield f"experts int8 {what} 30B-A3B", partial(launch, lambda *s: rounded_to_int8(dense(*s)), a3b, tokens, False)
        yield f"experts int4 {what} 30B-A3B", partial(launch, int4, a3b, tokens, False)
        yield f"experts fp8 {what} 30B-A3B", partial(launch, fp8, a3b, tokens, False)
        yield (
            f"experts fp4 {what} gpt-oss-20b",
            partial(launch, fp4, gpt_oss, tokens, True, experts.FusedActivation.CLAMPED),
        )


def attention_kernels(card: Card) -> Iterator[tuple[str, Callable[[], object]]]:
    eight, oss = (32, 8, 128, None), (64, 8, 64, 128)
    cases = {
        "decode 1B": ((14, 2, 64, None), 64, 1, torch.bfloat16),
        "decode 8B": (eight, 64, 1, torch.bfloat16),
        "decode 8B fp8": (eight, 64, 1, torch.float8_e4m3fn),
        "decode 8B drafts int8": (eight, 64, 4, torch.int8),
        "prefill 1B": ((14, 2, 64, None), 1, 3400, torch.bfloat16),
        "prefill 8B": (eight, 1, 3400, torch.bfloat16),
        "prefill 8B int8": (eight, 1, 3400, torch.int8),
        "mixed 20B oss": (oss, 8, 400, torch.bfloat16),
    }
    for name, ((heads, kv_heads, width, window), sequences, queries, kept) in cases.items():
        query = shape(sequences * queries, heads, width)
        cache = empty_cache((2, 4096, 16, kv_heads, width), kept, torch.device("meta"))
        batch = (shape(some, dtype=torch.int32) for some in (sequences + 1, sequences))
        table = shape(sequences, 512, dtype=torch.int32)
        sinks = shape(heads) if window else None
        own = (table, queries, 8192, width**-0.5, window, sinks, card)
        yield f"attention {name}", partial(paged_attention, query, cache, *batch, *own)
    for name, heads, width in (("300M", 16, 64), ("6B", 25, 128)):
        parts = shape(13, 1025, 3 * heads * width).unflatten(-1, (3, heads, width)).unbind(2)
        yield f"attention tiles {name}", partial(dense_attention, *parts, width**-0.5)


KERNELS = (
    row_kernels,
    rope_kernels,
    rounding_kernels,
    sampling_kernels,
    expert_kernels,
    byte_products,
    grouped_products,
    attention_kernels,
)

LAUNCHES = {
    f"{name} {on}": (card, launch)
    for kernels in KERNELS
    for on, card in CARDS.items()
    for name, launch in kernels(card)
}
