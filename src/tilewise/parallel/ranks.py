"""Ranks: the processes of a mesh, and their collectives through torch.distributed."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tilewise.errors import InvalidConfig
from tilewise.parallel.mesh import Mesh

_PATIENCE = timedelta(minutes=10)
"""How long a rank waits for the others, which may still be loading."""


class TorchCollectives:
    """Collectives of the process group that torch.distributed has as its default."""

    def sum(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        dist.all_reduce(x)
        return x

    def gather(self, x: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return parts

    def from_first(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        dist.broadcast(x, src=0)
        return x


def told(message: object) -> Any:
    """All ranks get the message of the first one; those of the others are not looked at. Ranks trust one another."""
    messages = [message]
    dist.broadcast_object_list(messages, src=0)
    return messages[0]


def join(rank: int, size: int, address: str, backend: str = "gloo") -> Mesh:
    """Become one of `size` ranks that meet at an address (`tcp://host:port`, or `file:///...` on one machine).

    Raises InvalidConfig in a process that is a rank already.
    """
    if dist.is_initialized():
        raise InvalidConfig(
            f"tensor_parallel_size={size}: this process has ranks already, or another library's process group; close "
            "the other engine, or give this one a process of its own."
        )
    if address.startswith("file:"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
    dist.init_process_group(backend, init_method=address, rank=rank, world_size=size, timeout=_PATIENCE)
    return Mesh(rank, size, TorchCollectives())


def _loopback() -> str:
    """The interface that only this machine can reach: what ranks of one machine tell each other is nobody else's."""
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))


def leave() -> None:
    """Nothing happens where nobody joined."""
    if dist.is_initialized():
        dist.destroy_process_group()
