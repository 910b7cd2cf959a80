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
from tilewise.platforms.cuda.kernels import rows
from tilewise.platforms.cuda.kernels.paged_attention import paged_attention
from tilewise.platforms.cuda.kernels.tile_attention import tile_attention
from tilewise.platforms.kv_cache import empty_cache

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


CLAIMS: dict[str, Claim] = {
    "_attend attention": Claim(NEWEST),
    "_attend attention decode": Claim(MMA),
    "_attend attention prefill 1B sm_100": Claim(NEWEST, spilled=16),
    "_attend attention mixed": Claim(),  # two ways in one launch, of which each has its own family
    "_attend attention mixed 20B oss sm_100": Claim(spilled=8),
    "_attend_tile attention": Claim(NEWEST),
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
    yield "silu_mul 8B", lambda: rows.silu_mul(shape(64, 2 * 12288))


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
        yield f"attention tiles {name}", partial(tile_attention, *parts, width**-0.5)


KERNELS = (row_kernels, attention_kernels)

LAUNCHES = {
    f"{name} {on}": (card, launch)
    for kernels in KERNELS
    for on, card in CARDS.items()
    for name, launch in kernels(card)
}
