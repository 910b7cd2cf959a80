"""Transfers between the host and a device, for which neither waits.

A copy of ordinary memory makes the host wait until the device's stream has come so far; pinned memory is copied in its
turn, while the host goes on. torch keeps pinned memory for a copy until that is through, and gives it to the next one
then. Streams and events are those of torch's module for the device, `torch.cuda` or `torch.npu`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers = Sequence[Any] | NDArray[Any]


def to_device(numbers: Numbers, device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """Return numbers of the host as a tensor of the device. On a CPU, it may share memory with an array of `dtype`."""
    here = (
        torch.from_numpy(numbers).to(dtype) if isinstance(numbers, np.ndarray) else torch.tensor(numbers, dtype=dtype)
    )
    return send(here, device)


_ALIGNED = 16
"""Bytes: kernels are compiled apart for memory that does not begin at a multiple of so many, as some read faster there.
With addresses that differ from step to step, they would be compiled anew for minutes after the start."""


def to_device_together(parts: Sequence[NDArray[np.int64]], device: torch.device) -> list[Tensor]:
    """Return arrays of the host as tensors of the device, in one copy; each begins at a multiple of 16 bytes."""
    padding = np.zeros(_ALIGNED // 8, np.int64)
    pieces = [piece for part in parts for piece in (part, padding[: -len(part) % len(padding)])]
    there = to_device(np.concatenate(pieces), device).split([len(piece) for piece in pieces])
    return list(there[::2])


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on a device; on a CPU, it is the same one."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


class Event(Protocol):
    """A point in a stream of a device: `torch.cuda.Event`, and what other devices have like it."""

    def record(self, stream: Any = None) -> None: ...

    def query(self) -> bool: ...

    def synchronize(self) -> None: ...


@dataclass(frozen=True, slots=True)
class PendingCopy:
    """Tensors on their way to the host."""

    tensors: tuple[Tensor, ...]
    copied: Event | None

    def wait(self) -> tuple[Tensor, ...]:
        if self.copied is not None:
            self.copied.synchronize()
        return self.tensors


def start_copy_to_host(*tensors: Tensor) -> PendingCopy:
    """Copy tensors to the host once the device has come so far, without waiting for it."""
    if not tensors or tensors[0].device.type == "cpu":
        return PendingCopy(tensors, None)
    copies = tuple(torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True) for x in tensors)
    copied: Event = torch.get_device_module(tensors[0].device).Event()
    copied.record()
    return PendingCopy(copies, copied)


class Streams:
    """Two queues of a device: steps run in one, which goes first, and tiles are encoded in the other, beside them."""

    def __init__(self, device: torch.device) -> None:
        self._module = torch.get_device_module(device)
        self._module.synchronize(device)  # what was loaded and filled so far
        self._steps = self._module.Stream(device, priority=-1)
        self._tiles = self._module.Stream(device, priority=0)

    def steps(self) -> AbstractContextManager[Any]:
        return self._on(self._steps)

    def tiles(self) -> AbstractContextManager[Any]:
        return self._on(self._tiles)

    def _on(self, stream: Any) -> AbstractContextManager[Any]:
        queue: AbstractContextManager[Any] = self._module.stream(stream)
        return queue

    def follow_steps(self) -> None:
        """Let what is launched for tiles from now on wait for all steps so far, which may read what it overwrites."""
        self._tiles.wait_stream(self._steps)

    def tiles_done(self) -> Event:
        """Return an event that happens when everything is done that was launched for tiles so far."""
        event: Event = self._module.Event()
        event.record(self._tiles)
        return event
