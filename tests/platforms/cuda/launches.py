"""What is compiled ahead of time: each kernel as the family's models would launch it, by the name of the case.

Cases of one kernel stand in the function that has its name; tensors have the shapes of a model of the family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from tilewise.platforms.cuda.card import A100, B200, H100, Card
from tilewise.platforms.cuda.kernels import byte_product, grouped_product, rows
from tilewise.platforms.cuda.kernels.product_tiles import Epilogue
from tilewise.platforms.forms import Codes

CARDS = {"sm_80": A100, "sm_90": H100, "sm_100": B200}

MMA = dict.fromkeys(CARDS, "mma")
"""Tensor cores by the instructions that all cards have: for tiles of fewer than 64 rows."""
NEWEST = {"sm_80": "mma", "sm_90": "wgmma", "sm_100": "tcgen05"}
"""Tensor cores by the instructions of each generation."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a compiled kernel has to keep to."""

    tensor_cores: Mapping[str, str] = field(default_factory=dict)
    """By card, the family (`ahead.TENSOR_CORES`) whose instructions it uses at least; none where it has no entry."""
    spilled: int = 0
    """Bytes of a thread that go to local memory at most."""


CLAIMS: dict[str, Claim] = {}
"""By the first words of kernel, case and card, as in "_attention", "_attention decode 8B" and "_attention decode 8B
sm_80"; the longest that fits counts. Kernels without an entry claim no tensor cores, and spill nothing."""


def claim_of(kernel: str, case: str) -> Claim:
    words = [kernel, *case.split()]
    found = (CLAIMS.get(" ".join(words[:length])) for length in range(len(words), 0, -1))
    return next((claim for claim in found if claim), Claim())


def shape(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(sizes, dtype=dtype, device="meta")


def row_kernels(card: Card) -> Iterator[tuple[str, Callable[[], object]]]:
    yield "silu_mul 8B", lambda: rows.silu_mul(shape(64, 2 * 12288))


def byte_products(card: Card) -> Iterator[tuple[str, Callable[[], object]]]:
    """The gate and up projections of an 8B (4096 inputs, 2 x 12288 outputs), its output projection, and the tower."""
    for rows_, outputs, inputs in ((1, 24576, 4096), (16, 4096, 4096), (64, 4096, 12288), (3400, 24576, 4096)):
        scales = Epilogue(shape(rows_, dtype=torch.float32), shape(outputs, dtype=torch.float32))
        for name, dtype in (("int8", torch.int8), ("fp8", torch.float8_e4m3fn)):
            if name == "fp8" and not card.has_fp8:
                continue
            x, matrix = shape(rows_, inputs, dtype=dtype), shape(outputs, inputs, dtype=dtype)
            product = getattr(byte_product, f"{name}_product")
            yield f"{name}_product 8B {rows_}", partial(product, x, matrix, torch.bfloat16, scales, card)
    x, matrix = shape(1025, 1024, dtype=torch.int8), shape(4096, 1024, dtype=torch.int8)
    static = Epilogue(None, shape(4096, dtype=torch.float32), shape(4096, dtype=torch.int32), shape(4096), gelu=True)
    yield "int8_product 300M gelu", lambda: byte_product.int8_product(x, matrix, torch.bfloat16, static, card)
    if card.has_fp8:
        for rows_ in (16, 3400):
            rounded, weights = (shape(n, 4096, dtype=torch.float8_e4m3fn) for n in (rows_, 24576))
            blocks, row_blocks = shape(32, 24576, dtype=torch.float32), shape(rows_, 32, dtype=torch.float32)
            yield (
                f"fp8_product blocks 8B {rows_}",
                partial(
                    byte_product.fp8_product, rounded, weights, torch.bfloat16, Epilogue(), card, blocks, row_blocks
                ),
            )


def grouped_products(card: Card) -> Iterator[tuple[str, Callable[[], object]]]:
    """The gate and up projections of an 8B, at groups as AWQ, GPTQ, MXFP4 and FP8 have them."""
    kinds = ((Codes.UINT4, 128, True), (Codes.INT4, 32, False), (Codes.FP4, 32, False), (Codes.INT8, 128, False))
    for kind, group, shifts in (*kinds, (Codes.FP8, 4096, False), (Codes.FP8, 128, False)):
        codes = shape(24576, 4096 * kind.bits // 32, dtype=torch.int32)
        scales = shape(4096 // group, 24576, dtype=torch.float16)
        for rows_ in (1, 32, 64, 3400):
            own = (kind, codes, scales, scales if shifts else None, group, None, False, card)
            yield (
                f"grouped_product {kind.name} {group} 8B {rows_}",
                partial(grouped_product.grouped_product, shape(rows_, 4096), *own),
            )


KERNELS = (row_kernels, byte_products, grouped_products)

LAUNCHES = {
    f"{name} {on}": (card, launch)
    for kernels in KERNELS
    for on, card in CARDS.items()
    for name, launch in kernels(card)
}
