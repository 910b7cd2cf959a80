"""Transfers between the host and a device, for which neither waits.

A copy of ordinary memory makes the host wait until CUDA's stream has come so far; pinned memory is copied in its turn,
while the host goes on. torch keeps pinned memory for a copy until that is through, and gives it to the next one then.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

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
    if device.type == "cpu":
        return here
    return here.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class PendingCopy:
    """Tensors on their way to the host."""

    tensors: tuple[Tensor, ...]
    copied: torch.cuda.Event | None

    def wait(self) -> tuple[Tensor, ...]:
        if self.copied is not None:
            self.copied.synchronize()
        return self.tensors


def start_copy_to_host(*tensors: Tensor) -> PendingCopy:
    """Copy tensors to the host once the device has come so far, without waiting for it."""
    if not tensors or tensors[0].device.type == "cpu":
        return PendingCopy(tensors, None)
    copies = tuple(torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True) for x in tensors)
    copied = torch.cuda.Event()
    copied.record()
    return PendingCopy(copies, copied)


class Streams:
    """Two queues of a GPU: steps run in one, which goes first, and tiles are encoded in the other, beside them."""

    def __init__(self, device: torch.device) -> None:
        torch.cuda.synchronize(device)  # what was loaded and filled so far
        self._steps = torch.cuda.Stream(device, priority=-1)
        self._tiles = torch.cuda.Stream(device, priority=0)

    def steps(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._steps)

    def tiles(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._tiles)

    def follow_steps(self) -> None:
        """Let what is launched for tiles from now on wait for all steps so far, which may read what it overwrites."""
        self._tiles.wait_stream(self._steps)

    def tiles_done(self) -> torch.cuda.Event:
        """Return an event that happens when everything is done that was launched for tiles so far."""
        event = torch.cuda.Event()
        event.record(self._tiles)
        return event
