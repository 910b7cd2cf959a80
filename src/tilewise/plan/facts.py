"""What planning has to know: sizes of a model, memory of a device, and the most that a step may compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tilewise.step import FlashRule


@dataclass(frozen=True, slots=True)
class LargestStep:
    """The most that one step may have to compute."""

    tokens: int
    sequences: int
    context: int
    """Tokens of the longest sequence."""
    logprobs: int
    """Alternatives that a token may be reported with; -1 = all tokens."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Sizes of a model, in tokens and bytes, that memory planning needs."""

    trained_length: int
    tokens_per_tile: int
    kv_bytes_per_token: int
    bytes_per_tile: int
    weight_bytes: int
    activation_bytes: Callable[[LargestStep], int]
    """What a step takes while it runs."""
    flash: FlashRule | None = None


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    free_bytes: int
    total_bytes: int
    utilization: float | None = None
    """Share of the total that an engine takes unless told otherwise; None = half of what is free, within 4 GiB."""
    beside_host: bool = False
    """It computes while the host does something else."""
    captures_graphs: bool = False
