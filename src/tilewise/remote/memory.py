"""Each replica's part of the machine's memory."""

from __future__ import annotations

from tilewise.amounts import in_bytes
from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig
from tilewise.host.memory import Memory, available_memory

_PROCESS = 256 * 2**20
"""Bytes that a process with torch takes before it has a model."""


def memory_part(config: EngineConfig) -> Memory | None:
    """Each replica's part of what this machine has now; None = one has it all, and measures for itself.

    It is measured once, for all and for all their lives: replicas that start side by side, or again, would each find
    something else. Raises InvalidConfig where not even their libraries fit.
    """
    replicas = config.data_parallel_size
    if replicas == 1:
        return None
    memory = available_memory()
    each = 1 if config.distributed_executor_backend == "ray" else config.layout.ranks  # Ray's are on nodes of their own
    processes = replicas * each
    if processes * _PROCESS > memory.free:
        most = max(1, memory.free // (_PROCESS * each))
        raise InvalidConfig(
            f"data_parallel_size={replicas} is not possible: {processes} processes take {in_bytes(_PROCESS)} each "
            f"before they have a model, and {in_bytes(memory.free)} are free: use {most} at most."
        )
    return Memory(memory.total // replicas, memory.free // replicas)
