"""Floors: the least time that a device can take for what a request asks, by the bytes it reads and what it computes.

A stage takes at least `max(bytes / bandwidth, floats / rate of floats + int8 / rate of int8)`: its weights, keys and
values are read from memory once, and every multiplication with its addition is two operations. Nothing else is counted:
no transfer between ranks, no launch, no norm, nothing that waits. A real engine takes longer, never less, as long as
its matrices do not stay in a cache. Experts are taken to be chosen evenly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tilewise.plan.devices import Device


@dataclass(frozen=True, slots=True)
class Matrices:
    """What a part of the model keeps on a rank."""

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
class Work:
    """What one stage reads and computes."""

    bytes: float = 0.0
    floats: float = 0.0
    int8: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.floats + other.floats, self.int8 + other.int8)

    def seconds(self, device: Device) -> float | None:
        """None where nothing is known of the device's speed."""
        if device.bandwidth is None or device.floats is None:
            return None
        computing = self.floats / device.floats + self.int8 / (device.int8 or device.floats)
        return max(self.bytes / device.bandwidth, computing)


def reading(matrices: Matrices, rows: float, share: float = 1.0, touched: float = 1.0, times: int = 1) -> Work:
    """Matrices that `rows` rows multiply with, `share` of them on average; `touched` are read, `times` times."""
    operations = 2 * rows * share
    return Work(matrices.bytes * touched * times, matrices.floats * operations, matrices.int8 * operations)


@dataclass(frozen=True, slots=True)
class RankWork:
    """A rank's part of the model, as far as time goes."""

    parts: dict[str, Matrices]
    """tower, projector, embedding, head, attention, mlp"""
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
    """How many there are in a layer, and how many of them a token takes."""

    def tiles(self, count: int) -> Work:
        """So many tiles through tower and projector, whose weights are read once."""
        if not count:
            return Work()
        tokens = count * self.tile_tokens
        attention = Work(floats=4.0 * tokens * self.tile_tokens * self.tower_width)
        projector = reading(self.parts["projector"], count * self.tile_rows)
        return reading(self.parts["tower"], tokens) + attention + projector

    def prompt(self, tokens: int, steps: int) -> Work:
        """A prompt in so many steps, each of which reads the weights; one token is chosen at its end."""
        seen = self._seen(tokens) / 2  # a token sees half of the prompt on average
        attention = Work(tokens * self.kv_bytes_per_token, 4.0 * tokens * self.query_width * seen)
        return self._layers(tokens, steps) + attention + reading(self.parts["head"], 1)

    def decode(self, sequences: int, context: int) -> Work:
        """One token of each of several sequences, which have so many tokens."""
        layers = max(1, self.full_layers + self.window_layers)
        kept = self.kv_bytes_per_token / layers * self._seen(context)
        attention = Work(sequences * kept, 4.0 * sequences * self.query_width * self._seen(context))
        return self._layers(sequences, 1) + attention + reading(self.parts["head"], sequences)

    def _layers(self, rows: int, steps: int) -> Work:
        share, touched = 1.0, 1.0
        if self.experts is not None:
            count, chosen = self.experts
            share = chosen / count
            # Of experts that are chosen evenly, those that no row of a step takes are not read.
            touched = 1 - (1 - share) ** math.ceil(rows / steps)
        return reading(self.parts["attention"], rows, times=steps) + reading(
            self.parts["mlp"], rows, share, touched, steps
        )

    def _seen(self, context: int) -> int:
        """Tokens that a query sees, of all layers together."""
        return self.full_layers * context + self.window_layers * min(context, self.window)
