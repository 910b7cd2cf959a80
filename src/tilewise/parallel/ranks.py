"""Ranks: the processes of a mesh, and their collectives through torch.distributed."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from tilewise.errors import InvalidConfig
from tilewise.layout import Layout
from tilewise.parallel.mesh import Mesh

_PATIENCE = timedelta(days=365)
"""Time that a rank waits for the others: they may be loading, or nobody may have asked anything for days. One that has
ended is noticed by its broken connection."""


class Collectives:
    """Moves of tensors between the ranks of a stage, a process group of torch.distributed: all call the same, in the
    same order, with tensors of one shape and dtype.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        """Use a process group; None = that of all ranks."""
        self._group = group

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum over all ranks, the same bits on each; `x` may be overwritten."""
        x = x.contiguous()
        dist.all_reduce(x, group=self._group)
        return x

    def sum_own(self, x: Tensor) -> Tensor:
        """Return this rank's rows of the sum over all ranks, as many as each has; `x` may be overwritten."""
        # Every backend and release of torch has this sum; a scattered one of its own would send half as much.
        each = len(x) // dist.get_world_size(self._group)
        return self.sum(x).narrow(0, dist.get_rank(self._group) * each, each)

    def gather(self, x: Tensor) -> list[Tensor]:
        """Return every rank's tensor, in the order of the ranks."""
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(parts, x, group=self._group)
        return parts

    def from_first(self, x: Tensor) -> Tensor:
        """Return the first rank's tensor; `x` may be overwritten."""
        x = x.contiguous()
        dist.broadcast(x, group=self._group, group_src=0)
        return x


class Pipeline:
    """Moves of tensors between stages; each rank of a stage has a partner in the next one, whose number is as much
    higher as a stage has ranks.
    """

    def __init__(self, layout: Layout) -> None:
        self._distance = layout.tensor
        self._chooses = layout.ranks - layout.tensor

    def send(self, x: Tensor) -> None:
        dist.send(x.contiguous(), dst=dist.get_rank() + self._distance)

    def receive(self, into: Tensor) -> Tensor:
        """Return the tensor that the partner in the stage before sends, of the shape and dtype of `into`."""
        dist.recv(into, src=dist.get_rank() - self._distance)
        return into

    def from_last(self, x: Tensor) -> Tensor:
        """Return the tensor of the last stage's first rank, on all ranks of all stages; `x` may be overwritten."""
        x = x.contiguous()
        dist.broadcast(x, src=self._chooses)
        return x

    def object_from_last(self, data: object) -> Any:
        """Return the plain data that the last stage's first rank gives, on all ranks of all stages."""
        objects = [data]
        dist.broadcast_object_list(objects, src=self._chooses)
        return objects[0]


def broadcast(message: object = None) -> Any:
    """Send rank 0's message to all ranks, and return it on each. Other ranks pass nothing.

    None from rank 0 tells them to end. Messages are pickled, as ranks trust one another.
    """
    messages = [message]
    dist.broadcast_object_list(messages, src=0)
    return messages[0]


def join(number: int, layout: Layout, address: str, backend: str = "gloo") -> Mesh:
    """Become a rank of a replica; ranks meet at an address (`tcp://host:port`, or `file:///...` on one machine).

    Raises InvalidConfig in a process that is a rank already.
    """
    refuse_second(layout)
    size = layout.ranks
    if address.startswith("file:"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
        dist.init_process_group(backend, init_method=address, rank=number, world_size=size, timeout=_PATIENCE)
    else:
        store = _store(address, size, first=number == 0)
        dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=_PATIENCE)
    if layout.pipeline == 1:
        return Mesh.at(layout, number, Collectives())
    return Mesh.at(layout, number, _stage_collectives(layout, number), Pipeline(layout))


def _store(address: str, size: int, first: bool) -> TCPStore:
    """Return the store where ranks of several machines find each other, which the first one keeps.

    It listens at its address alone. Left to itself, torch listens at all of the machine's, and whoever reaches one of
    them can tell ranks to connect elsewhere. Raises InvalidConfig.
    """
    parts = urlsplit(address)
    host, port = parts.hostname or "", parts.port or 0
    if not first:
        return TCPStore(host, port, size, False, _PATIENCE)
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise InvalidConfig(f"Ranks cannot meet at {host}:{port} ({reason}): choose another address or port.") from None
    return TCPStore(host, port, size, True, _PATIENCE, master_listen_fd=listener.detach())


def _stage_collectives(layout: Layout, number: int) -> Collectives | None:
    """Make the groups of all stages, as torch.distributed wants it of every rank, and return that of this stage."""
    size = layout.tensor
    if size == 1:
        return None
    groups = [dist.new_group(range(first, first + size), timeout=_PATIENCE) for first in range(0, layout.ranks, size)]
    return Collectives(groups[number // size])


def refuse_second(layout: Layout) -> None:
    """Raise InvalidConfig in a process that is a rank already."""
    if dist.is_initialized():
        raise InvalidConfig(
            f"{layout.ranks} ranks: this process is a rank already, or in another library's process group; close the "
            "other engine, or give this one a process of its own."
        )


def _loopback() -> str:
    """Return the interface that only this machine can reach: what its ranks tell each other is for nobody else."""
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))


def leave() -> None:
    """Stop being a rank; nothing happens in a process that is none."""
    if dist.is_initialized():
        dist.destroy_process_group()
