"""Card: what of a GPU decides how kernels are launched on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Card:
    """Sizes of kernels are chosen from these alone, so that they can be compiled for a card that is not here."""

    capability: tuple[int, int]
    """Compute capability, such as (9, 0)."""
    processors: int
    """Streaming multiprocessors."""

    @classmethod
    def of(cls, device: torch.device) -> Card:
        found = torch.cuda.get_device_properties(device)
        return cls((found.major, found.minor), found.multi_processor_count)

    @property
    def has_fp8(self) -> bool:
        """Tensor cores multiply float8_e4m3fn since Ada and Hopper."""
        return self.capability >= (8, 9)


A100, H100, B200 = Card((8, 0), 108), Card((9, 0), 132), Card((10, 0), 148)
"""For these, kernels are compiled in the tests."""
