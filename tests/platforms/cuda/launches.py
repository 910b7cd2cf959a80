"""What is compiled ahead of time: each kernel as the family's models would launch it, by the name of the case.

Cases of one kernel stand in the function that has its name; tensors have the shapes of a model of the family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tilewise.platforms.cuda.card import A100, B200, H100, Card
from tilewise.platforms.cuda.kernels import rows

CARDS = {"sm_80": A100, "sm_90": H100, "sm_100": B200}


def shape(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(sizes, dtype=dtype, device="meta")


def row_kernels(card: Card) -> Iterator[tuple[str, Callable[[], object]]]:
    yield "silu_mul 8B", lambda: rows.silu_mul(shape(64, 2 * 12288))


KERNELS = (row_kernels,)

LAUNCHES = {
    f"{name} {on}": (card, launch)
    for kernels in KERNELS
    for on, card in CARDS.items()
    for name, launch in kernels(card)
}
