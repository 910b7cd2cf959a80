"""Floors: the least time that a device can take for what a request asks, by the bytes it reads and what it computes.

A stage takes at least `max(bytes / bandwidth, floats / rate of floats + int8 / rate of int8)`: its weights, keys and
values are read from memory once, and every multiplication with its addition is two operations. Nothing else is counted:
no transfer between ranks, no launch, no norm, nothing that waits. A real engine takes longer, never less, as long as
its matrices do not stay in a cache. Experts are taken to be chosen evenly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tilewise.plan.request import Device


@dataclass(frozen=True, slots=True)
class Matrices:
    """The matrices of a part of the model on a rank: what they take, and how much they multiply."""

    bytes: int = 0
    floats: int = 0
    """Numbers that multiply with rows of floats, each once a row."""
    int8: int = 0
    """Numbers that multiply with rows of int8."""

    def __add__(self, other: Matrices) -> Matrices:
        return Matrices(self.bytes + other.bytes, self.floats + other.floats, self.int8 + other.int8)

    def __sub__(self, other: Matrices) -> Matrices:
        return Matrices(self.bytes - other.bytes, self.floats - other.floats, self.int8 - other.int8)


@dataclass(frozen=True, slots=True)
class StageWork:
    """The bytes that a stage reads, and the operations that it computes in floats and in int8."""

    bytes: float = 0.0
    floats: float = 0.0
    int8: float = 0.0

    def __add__(self, other: StageWork) -> StageWork:
        return StageWork(self.bytes + other.bytes, self.floats + other.floats, self.int8 + other.int8)

    def seconds(self, device: Device) -> float | None:
        """Return the seconds that the work takes at least; None where nothing is known of the device's speed."""
        if device.bandwidth is None or device.floats is None:
            return None
        computing = self.floats / device.floats + self.int8 / (device.int8 or device.floats)
        return max(self.bytes / device.bandwidth, computing)


def matrix_work(matrices: Matrices, rows: float, share: float = 1.0, touched: float = 1.0, times: int = 1) -> StageWork:
    """Return the work of matrices that `rows` rows multiply with.

    A row multiplies with a share of them on average; a share of `touched` is read, so many `times`.
    """
    operations = 2 * rows * share
    return StageWork(matrices.bytes * touched * times, matrices.floats * operations, matrices.int8 * operations)


@dataclass(frozen=True, slots=True)
class RankWork:
    """A rank's part of the model, as far as time goes."""

    parts: dict[str, Matrices]
    """Matrices by part: tower, projector, embedding, head, attention, mlp."""
    tile_tokens: int
    """Patches of a tile and the class token."""
    tile_rows: int
    """Rows that a tile becomes."""
    tower_width: int
    """Hidden size of the tower times its layers."""
    query_width: int
    """Width of all query heads of the rank."""
    full_layers: int
    window_layers: int
    """Layers that see no more than `window` tokens back."""
    window: int
    kv_bytes_per_token: int
    experts: tuple[int, int] | None
    """(experts of a layer, experts that a token takes); None = a model without experts."""

    def tiles(self, count: int) -> StageWork:
        """Return the work of so many tiles in tower and projector, whose weights are read once."""
        if not count:
            return StageWork()
        tokens = count * self.tile_tokens
        # For each query and key, two products of the width of a query, score and value, of two operations a number.
        attention = StageWork(floats=4.0 * tokens * self.tile_tokens * self.tower_width)
        projector = matrix_work(self.parts["projector"], count * self.tile_rows)
        return matrix_work(self.parts["tower"], tokens) + attention + projector

    def prompt(self, tokens: int, steps: int) -> StageWork:
        """Return the work of a prompt in so many steps, which read the weights each; one token is chosen at its end."""
        seen = self._seen(tokens) / 2  # a token sees half of the prompt on average
        attention = StageWork(tokens * self.kv_bytes_per_token, 4.0 * tokens * self.query_width * seen)
        return self._layers(tokens, steps) + attention + matrix_work(self.parts["head"], 1)

    def decode(self, sequences: int, context: int) -> StageWork:
        """Return the work of one token of each of several sequences, which have `context` tokens."""
        layers = max(1, self.full_layers + self.window_layers)
        kept = self.kv_bytes_per_token / layers * self._seen(context)
        attention = StageWork(sequences * kept, 4.0 * sequences * self.query_width * self._seen(context))
        return self._layers(sequences, 1) + attention + matrix_work(self.parts["head"], sequences)

    def _layers(self, rows: int, steps: int) -> StageWork:
        share, touched = 1.0, 1.0
        if self.experts is not None:
            count, chosen = self.experts
            share = chosen / count
            # Of experts that are chosen evenly, those that no row of a step takes are not read.
            touched = 1 - (1 - share) ** math.ceil(rows / steps)
        return matrix_work(self.parts["attention"], rows, times=steps) + matrix_work(
            self.parts["mlp"], rows, share, touched, steps
        )

    def _seen(self, context: int) -> int:
        """Return the tokens that a query sees, of all layers together."""
        return self.full_layers * context + self.window_layers * min(context, self.window)
