"""Setup: what the processes of one run agree on."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from tilewise.platforms import current_platform
from tilewise.platforms.base import Platform


@dataclass(frozen=True)
class Setup:
    device: str
    """cuda or cpu"""
    tiny: bool
    """Twins in the place of models, and small sizes."""
    folder: Path
    """For what parts write."""
    seed: int
    ends: float
    """When the part has to be through, on the clock of time.time()."""

    @property
    def left(self) -> float:
        """Seconds."""
        return self.ends - time.time()

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def platform(self) -> Platform:
        return current_platform(self.device)  # type: ignore[arg-type]

    def sized(self, full: int, tiny: int) -> int:
        return tiny if self.tiny else full

    def generator(self, item: str) -> torch.Generator:
        """Fresh numbers in every run, the same for an item of the same seed."""
        return torch.Generator(self.platform().device).manual_seed(self.seed + sum(item.encode()))
