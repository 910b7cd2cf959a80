"""Facts that planning needs: sizes of a model, memory of a device, and the most that a step may compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tilewise.step import FlashRule


@dataclass(frozen=True, slots=True)
class LargestStep:
    """The most that one step may have to compute."""

    tokens: int
    sequences: int
    rows: int
    """Places at which a token is chosen: one a sequence, and one more for each guess."""
    context: int
    """Tokens of the longest sequence."""
    logprobs: int
    """Alternatives that a token may be reported with; -1 = all tokens."""
    tiles: int
    """Tiles that are encoded at a time."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Sizes of a model, in tokens and bytes, that memory planning needs."""

    trained_length: int
    tokens_per_tile: int
    kv_bytes_per_token: int
    bytes_per_tile: int
    weight_bytes: int
    activation_bytes: Callable[[LargestStep], int]
    """Bytes that a step takes while it runs."""
    flash: FlashRule | None = None


def with_draft(model: ModelFacts, draft: ModelFacts) -> ModelFacts:
    """Return what a model and its draft model take together.

    A draft model has keys, values and rows of its own for every token and tile. The two compute in turns, so the larger
    activations are enough for both.
    """
    return replace(
        model,
        kv_bytes_per_token=model.kv_bytes_per_token + draft.kv_bytes_per_token,
        bytes_per_tile=model.bytes_per_tile + draft.bytes_per_tile,
        weight_bytes=model.weight_bytes + draft.weight_bytes,
        activation_bytes=lambda step: max(model.activation_bytes(step), draft.activation_bytes(step)),
    )


def with_vision_workers(model: ModelFacts, workers: int, tower_bytes: int) -> ModelFacts:
    """Return what a model and its vision workers take together.

    Each worker has a tower, the model itself none; workers encode while the model decodes, so activations add up.
    """

    def activation_bytes(step: LargestStep) -> int:
        encoding = LargestStep(tokens=1, sequences=1, rows=1, context=1, logprobs=0, tiles=step.tiles)
        return model.activation_bytes(step) + workers * model.activation_bytes(encoding)

    weights = model.weight_bytes + (workers - 1) * tower_bytes
    return replace(model, weight_bytes=weights, activation_bytes=activation_bytes)


def largest(ranks: Sequence[ModelFacts]) -> ModelFacts:
    """Return what is enough for each of several ranks, which all have the same number of blocks and pages."""
    if len(ranks) == 1:
        return ranks[0]
    return replace(
        ranks[0],
        kv_bytes_per_token=max(rank.kv_bytes_per_token for rank in ranks),
        weight_bytes=max(rank.weight_bytes for rank in ranks),
        activation_bytes=lambda step: max(rank.activation_bytes(step) for rank in ranks),
    )


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    free_bytes: int
    total_bytes: int
    utilization: float | None = None
    """Share of the total that an engine takes unless told otherwise; None = the KV cache gets half of what is left, and
    4 GiB at most."""
    beside_host: bool = False
    """True if it computes while the host does something else."""
    captures_graphs: bool = False
    graph_sizes: tuple[int, ...] = ()
    """Numbers of sequences of captured steps, to which others are padded; empty = steps are captured as they come."""
    tile_batches: tuple[int, ...] = (1,)
    """Numbers of tiles that it encodes at a time, the largest first."""
    resize_kernels: str | None = None
    """A shared object of this host that resizes pictures (`tilewise.resize`)."""
