"""The contract of a platform: a kind of device to compute on, and how steps are captured and choices told there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tilewise.platforms.kv_cache import PagedLayout
from tilewise.platforms.ops import Ops
from tilewise.platforms.transfers import Streams


@dataclass(frozen=True, slots=True)
class Choice:
    """The implementation that an op has on a platform, and why."""

    op: str
    path: str
    why: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A platform's report on itself, for `tilewise doctor`."""

    facts: dict[str, str]
    choices: tuple[Choice, ...]


class NotCapturable(Exception):
    """A step does something that could not be repeated, as the message says, so it cannot be captured."""


class Graph(Protocol):
    """A captured step, which can be computed again."""

    @property
    def first(self) -> Tensor | None:
        """Result of the step as it was captured; None where a device computes nothing meanwhile, so that the graph has
        to be replayed first.
        """
        ...

    def replay(self, layout: PagedLayout | None = None) -> Tensor:
        """Compute the step again from what its inputs hold now; the result takes the place of the last one.

        `layout` is that of the step, for what its inputs do not hold: the lengths that the host knows.
        """
        ...


Capture = Callable[[Callable[[], Tensor]], Graph]
"""A function that keeps a step as a graph, whose inputs have to stay where they are; raises NotCapturable."""

Capturer = Callable[[Ops], Capture | None]
"""The type of `Platform.capturer`."""


class Platform(Protocol):
    """A kind of device to compute on: its ops, its memory, and how work is best cut for it."""

    name: str
    device: torch.device
    shared_memory: bool
    """True if the ranks of one machine share its memory; else each has a device of its own."""
    backend: str
    """Name of the backend by which torch.distributed sums over ranks."""
    beside_host: bool
    """True if the device computes while the host does something else."""
    tiles_beside: bool
    """True if the device encodes tiles while it computes steps: if there are `streams`."""
    tile_batches: tuple[int, ...]
    """Numbers of tiles that may be encoded at a time, the largest first."""
    graph_sizes: tuple[int, ...]
    """Numbers of sequences for which steps are captured; other steps are filled up to the next one. Empty = steps are
    captured as they come."""
    block_sizes: range
    """Numbers of tokens that a KV block may have."""
    block_size: int
    """Tokens of a KV block unless told otherwise."""
    utilization: float | None
    """Share of the device's memory that an engine takes by default; None = half of what is free, within 4 GiB."""

    @property
    def resize_kernels(self) -> str | None:
        """Path of a shared object whose kernels resize pictures (`tilewise.resize`), if there is one."""
        ...

    def ops(self, batch_invariant: bool = False) -> Ops:
        """Return the ops of this device.

        Batch-invariant ones compute a row's numbers bit by bit the same, whatever stands in other rows: for rows of the
        decoder that come in panels, and for tiles that come one at a time.
        """
        ...

    def check_ranks(self, ranks: int) -> None:
        """Raise InvalidConfig unless so many ranks of this machine, the first of them here, find a device each."""
        ...

    def streams(self) -> Streams | None:
        """Return the queues for steps and for tiles beside them; None where a device does one thing after the other."""
        ...

    def capturer(self, ops: Ops) -> Capture | None:
        """Return a function that captures steps which these ops compute; None where they cannot be captured.

        Its steps share one memory for what passes between their kernels, so one of them may run at a time.
        """
        ...

    def default_dtype(self, checkpoint: torch.dtype, parameters: int) -> torch.dtype:
        """Return the dtype that `--dtype auto` means for a checkpoint of this dtype and number of parameters."""
        ...

    def diagnose(self) -> Diagnosis:
        """Report what this device is, and how it will compute."""
        ...

    def total_memory(self) -> int:
        """Return the bytes of memory that there are."""
        ...

    def free_memory(self) -> int:
        """Return the bytes of memory that can still be taken."""
        ...
