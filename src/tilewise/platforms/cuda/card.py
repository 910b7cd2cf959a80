"""Card: the properties of a GPU that decide how kernels are launched on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Card:
    """The properties of a GPU from which alone the sizes of kernels are chosen, so that kernels can be compiled for a
    card that is not here.
    """

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
        """True if tensor cores multiply float8_e4m3fn, as they do since Ada and Hopper."""
        return self.capability >= (8, 9)


A100, H100, B200 = Card((8, 0), 108), Card((9, 0), 132), Card((10, 0), 148)
"""Cards for which the tests compile kernels."""
